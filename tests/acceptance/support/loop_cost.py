"""What the training loop costs beside the model and the update.

Two figures, both of real runs: how long a quickstart step waits for its batch, and what share of a
step at mini size is spent outside forward, backward and update. For the latter the loop runs as it
always does (default tracker, a metrics line a step) and only the three calls of DeepSpeed are
timed in it, so that other work on the machine slows both sides alike. It runs on the CPU, where no
call returns before its work is done.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roberta_dist.config.load import compose
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.engine.setup import close_world
from roberta_dist.runtime.leave import end_process
from roberta_dist.runtime.signals import StopRequest
from roberta_dist.runtime.world import detect_world
from roberta_dist.track.sinks import open_tracker
from roberta_dist.train.build import build_run
from roberta_dist.train.journal import Journal
from roberta_dist.train.ledger import Ledger
from roberta_dist.train.loop import Loop

WARMUP, STEPS = 10, 50
MINI_WARMUP, MINI_STEPS = 3, 23
MINI = [
    "experiment=quickstart", "model=mini", "evaluate.every_steps=0", "checkpoint.every_steps=1000",
    f"schedule.max_steps={MINI_STEPS}", "schedule.warmup_steps=5",
]  # fmt: skip
"""The quickstart's rows and batch, 32 x 128 tokens, with a model of 4 layers of 256."""


def loop_cost(work: Path) -> tuple[float, float]:
    """Train twice in `work`, which may hold the prepared quickstart corpus in `corpus` already.

    Returns:
        Data wait over step time of the quickstart on two ranks, the median after a warm-up, and the
        share of the mini model's steps on one rank that is neither model nor update.
    """
    from compare_trainer import prepared

    corpus = prepared(work)
    _command(
        "launch", "experiment=quickstart", f"data.path={corpus}", f"run_dir={work / 'quickstart'}",
        "cluster.workers_per_node=2", f"schedule.max_steps={STEPS}", "schedule.warmup_steps=10",
    )  # fmt: skip
    lines = map(json.loads, (work / "quickstart" / "metrics.jsonl").read_text().splitlines())
    waits = [line["data_wait_s"] / line["step_time_s"] for line in lines if "loss" in line]
    told = subprocess.run(
        [sys.executable, __file__, str(corpus), str(work / "mini")],
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return statistics.median(waits[WARMUP:]), json.loads(told.stdout.splitlines()[-1])


def _command(verb: str, *settings: str) -> None:
    subprocess.run([sys.executable, "-m", "roberta_dist.cli", verb, *settings], check=True)


@dataclass
class Timed:
    """DeepSpeed's engine and the tracker, with a clock in their calls."""

    engine: Any
    tracker: Any
    model_s: float = 0.0
    stamps: list[tuple[float, float]] = field(default_factory=list)
    """(clock, `model_s` so far) after each step's metrics line."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def _time(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        result = call(*args, **kwargs)
        self.model_s += time.perf_counter() - began
        return result

    def __call__(self, **batch: Any) -> Any:
        return self._time(self.engine, **batch)

    def backward(self, *args: Any, **kwargs: Any) -> Any:
        return self._time(self.engine.backward, *args, **kwargs)

    def step(self) -> Any:
        return self._time(self.engine.step)

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        self.tracker.log(step, metrics)
        self.stamps.append((time.perf_counter(), self.model_s))

    def flush(self) -> None:
        self.tracker.flush()


def mini_overhead(corpus: str, run_dir: str) -> float:
    """What is not model or update, of the time from one metrics line to another 20 steps on.

    A share of the whole, no median: what is done only every few steps counts too.
    """
    settings = [*MINI, f"data.path={corpus}", f"run_dir={run_dir}"]
    config = compose("pretrain", PretrainConfig, settings)
    Path(run_dir).mkdir(parents=True)
    run = build_run(config, detect_world())
    tracker = open_tracker(config.track, Path(run_dir), 0, MINI_STEPS, True, {})
    timed = Timed(run.engine.engine, tracker)
    run.engine.engine = timed
    ledger = Ledger(config, Journal(Path(run_dir) / "skips.jsonl", [], True))
    Loop(run, timed, StopRequest(), ledger).fit()  # type: ignore[arg-type]
    tracker.close()
    began, model_before = timed.stamps[MINI_WARMUP]
    ended, model_s = timed.stamps[-1]
    return 1 - (model_s - model_before) / (ended - began)


if __name__ == "__main__":
    print(json.dumps(mini_overhead(*sys.argv[1:])))
    close_world()
    end_process(0)
