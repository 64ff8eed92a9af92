"""Real runs for tests: a small corpus, composed configurations, ranks that can be killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from roberta_dist.checkpoint.reader import load_weights
from roberta_dist.config.load import compose, to_yaml
from roberta_dist.config.roots import PrepareConfig, PretrainConfig
from roberta_dist.corpus.prepare import prepare
from roberta_dist.launcher.workers import workers_of
from roberta_dist.track.names import is_deterministic

TINY = [
    "model.num_layers=2", "model.hidden_size=32", "model.ffn_size=64", "model.num_heads=2",
    "model.max_positions=64", "data.sequence_length=64", "train.global_batch_size=16",
    "train.micro_batch_size=4", "optim.lr=2e-3", "schedule.max_steps=40", "schedule.warmup_steps=4",
    "checkpoint.every_steps=10", "evaluate.every_steps=20", "evaluate.max_rows=32",
    "track.wandb=disabled", "track.tensorboard=false", "track.progress=false",
    "track.layers_every=15",
]  # fmt: skip


SMALL_CORPUS = (
    "corpus.max_mib=2", "corpus.pack_mib=0.015625", "corpus.shard_mib=1",
    "corpus.held_out_fraction=0.05", "tokenizer.vocab_size=1000", "tokenizer.train_mib=1",
)  # fmt: skip


def prepare_corpus(folder: Path, *overrides: str) -> Path:
    """About 2 MiB of documentation in packs of 16 KiB."""
    settings = [f"output={folder}", *SMALL_CORPUS, "progress=false", *overrides]
    assert prepare(compose("prepare", PrepareConfig, settings)) == 0
    return folder


@dataclass
class Ranks:
    """Processes of one attempt."""

    processes: list[subprocess.Popen[bytes]]
    logs: list[Path]

    def wait(self, timeout: float = 240) -> list[int]:
        """Exit codes; nothing is left running."""
        try:
            return [process.wait(timeout) for process in self.processes]
        finally:
            self.signal(signal.SIGKILL)

    def signal(self, signum: int) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                process.send_signal(signum)

    def output(self) -> str:
        return "\n".join(log.read_text() for log in self.logs)


def write_config(run_dir: Path, corpus: Path, *overrides: str) -> Path:
    """RUN/config.yaml as the launcher writes it."""
    settings = [f"run_dir={run_dir}", f"data.path={corpus}", *TINY, *overrides]
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / "config.yaml"
    path.write_text(to_yaml(compose("pretrain", PretrainConfig, settings)))
    return path


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def world_environ(rank: int, world_size: int, port: int, attempt: str) -> dict[str, str]:
    """What srun or the deepspeed launcher would tell a worker."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
        "LOCAL_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1", "ROBERTA_DIST_ATTEMPT": attempt,
    }  # fmt: skip


def start(
    config: Path, world_size: int, attempt: str = "attempt_000", output: Path | None = None
) -> Ranks:
    """Start the worker on every rank, as srun or the deepspeed launcher would."""
    output = output or config.parent
    port = free_port()
    processes, logs = [], []
    for rank in range(world_size):
        environ = os.environ | world_environ(rank, world_size, port, attempt)
        logs.append(output / f"{attempt}.{world_size}.{rank}.out")
        with open(logs[-1], "wb") as log:
            command = [sys.executable, "-m", "roberta_dist.train", str(config)]
            processes.append(subprocess.Popen(command, env=environ, stdout=log, stderr=log))
    return Ranks(processes, logs)


def finish(config: Path, world_size: int, attempt: str = "attempt_000") -> Ranks:
    """Run to the end; every rank must exit 0."""
    ranks = start(config, world_size, attempt)
    codes = ranks.wait()
    assert codes == [0] * world_size, ranks.output()[-4000:]
    return ranks


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl; a half-written last one is left out."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


def deterministic(run_dir: Path) -> list[dict[str, Any]]:
    """The columns that must not depend on when a run was killed."""
    return [
        {key: value for key, value in line.items() if is_deterministic(key)}
        for line in metrics(run_dir)
    ]


def losses(run_dir: Path) -> dict[int, float]:
    """Training loss of each step."""
    return {line["step"]: line["loss"] for line in metrics(run_dir) if "loss" in line}


def wait_for_step(run_dir: Path, ranks: Ranks, step: int, timeout: float = 120) -> None:
    """Return as soon as metrics.jsonl shows `step`."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        found = metrics(run_dir)
        if found and found[-1]["step"] >= step:
            return
        assert all(process.poll() is None for process in ranks.processes), ranks.output()[-4000:]
        time.sleep(0.005)
    raise AssertionError(f"step {step} not reached in {timeout} s")


def worker_of(run_dir: Path, rank: int, timeout: float = 60) -> psutil.Process:
    """The process of one rank of a run."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if (process := workers_of(run_dir).get(rank)) is not None:
            return process
        time.sleep(0.05)
    raise AssertionError(f"no rank {rank} of {run_dir}")


def same_weights(left: Path, right: Path) -> bool:
    """Bit for bit."""
    ours, theirs = load_weights(left), load_weights(right)
    return ours.keys() == theirs.keys() and all(
        np.array_equal(ours[name].view(np.uint32), theirs[name].view(np.uint32)) for name in ours
    )
