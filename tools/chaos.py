"""Hurt a run again and again, and see whether it ends as if nothing had happened.

    python tools/chaos.py WORK [--seed 1] [--kills 25] [--faults kill,save] [--workers 2] [KEY=VALUE ...]

Trains the same small model twice with `roberta-dist launch` on --workers ranks: WORK/whole undisturbed, WORK/run
with a fault in each N-th part of its steps, at a step and on a rank drawn from the seed. KEY=VALUE
changes both (`engine.stage=2`). The launcher starts the world again by itself; only what a scheduler
would start again (a run that stopped on request) is started again here.

    kill      SIGKILL to a rank
    save      SIGKILL to a rank while a checkpoint is being written
    term      SIGTERM to a rank: it saves, leaves REQUEUE and ends
    stop      SIGSTOP to a rank: the others' watchdogs end the world
    corrupt   a bit of the newest checkpoint is flipped, then SIGKILL to a rank
    disk      the disk is full during a save (WORK on a file system of 256 MiB or less, such as a tmpfs)

The last line is JSON: `kills`, faults done; `survived`, whether the run finished; `max_lost_steps`, the
most steps that one fault made it repeat; `identical`, whether every deterministic column and the last
weights are those of the undisturbed run; `seconds`.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from compare_runs import first_differences, first_tensor, read
from compare_trainer import prepared
from tqdm import tqdm

from roberta_dist.checkpoint.format import TEMPORARY, step_folder
from roberta_dist.launcher.workers import workers_of
from roberta_dist.runtime.metrics import rows_backwards
from roberta_dist.runtime.rundir import RunPaths, complete_steps

FAULTS = ("kill", "save", "term", "stop", "corrupt", "disk")
STEPS_PER_FAULT = 40
POLL_S = 0.002
PATIENCE_S = 180.0
"""Longest wait for a run to reach a step, or for a fault to show."""
FULL_S = 0.2
"""Seconds in which a full disk takes nothing at all: some steps, and not the last, whose save must succeed."""
CORPUS = ("corpus.max_mib=4", "tokenizer.vocab_size=2000")
COMMON = (
    "model.num_layers=2", "model.hidden_size=64", "model.ffn_size=128", "model.num_heads=2",
    "model.max_positions=64", "data.sequence_length=64", "train.global_batch_size=16",
    "train.micro_batch_size=4", "optim.lr=2e-3", "schedule.warmup_steps=4", "schedule.decay=constant",
    "checkpoint.every_steps=10", "evaluate.every_steps=50", "evaluate.max_rows=32",
    "track.wandb=disabled", "track.tensorboard=false", "track.progress=false",
    "cluster.threads_per_worker=1", "cluster.restart_delay_s=0", "train.hang_timeout_s=15",
)  # fmt: skip


class RunUnderTest:
    """A launch that is started again when it stopped on request."""

    def __init__(self, run_dir: Path, workers: int, settings: list[str]) -> None:
        self.paths = RunPaths(run_dir)
        self.workers = workers
        self._command = [
            sys.executable, "-m", "roberta_dist.cli", "launch", f"run_dir={run_dir}",
            f"cluster.workers_per_node={workers}", *settings,
        ]  # fmt: skip
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        self._log = open(run_dir.parent / f"{run_dir.name}.log", "ab")  # noqa: SIM115
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, stdout=self._log, stderr=self._log)

    def alive(self) -> bool:
        """Whether it runs; a run that stopped on request is started again first."""
        if self.process.poll() is None:
            return True
        if self.process.returncode == 0 and self.paths.requeue.is_file():
            self.process = self._start()
            return True
        return False

    def step(self) -> int:
        """Last step in metrics.jsonl."""
        return next((row["step"] for row in rows_backwards(self.paths.metrics)), 0)

    def ranks(self) -> list[Any]:
        """Processes of the workers, by rank."""
        return list(workers_of(self.paths.root).values())

    def writing(self) -> bool:
        """Whether a checkpoint is being written."""
        return any(self.paths.checkpoints.glob(f"{TEMPORARY}*"))


def wait_for(run: RunUnderTest, condition: Any) -> bool:
    """True as soon as `condition()`, False when the run ended or patience did."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if condition():
            return True
        if not run.alive():
            return False
        time.sleep(POLL_S)
    return False


def hurt(run: RunUnderTest, fault: str, draw: random.Random) -> bool:
    """One fault; False if it could not be done."""
    if fault == "disk":
        return fill_disk(run)
    if fault == "corrupt":
        flip_a_bit(run.paths.checkpoints, draw)
    if not wait_for(run, lambda: len(run.ranks()) == run.workers):
        return False
    rank = draw.choice(run.ranks())
    # The rank is looked up before: a save takes less time than that.
    if fault == "save" and not wait_for(run, run.writing):
        return False
    signum = {"term": signal.SIGTERM, "stop": signal.SIGSTOP}.get(fault, signal.SIGKILL)
    with suppress(psutil.Error):
        rank.send_signal(signum)
        return True
    return False


def flip_a_bit(checkpoints: Path, draw: random.Random) -> None:
    """Damage the newest complete checkpoint."""
    steps = complete_steps(checkpoints)
    if steps:
        shard = step_folder(checkpoints, steps[-1]) / "shards" / "rank_00000.safetensors"
        data = bytearray(shard.read_bytes())
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        shard.write_bytes(data)


def fill_disk(run: RunUnderTest) -> bool:
    """Leave no room until a save has failed, then give it back."""
    filler, before = run.paths.root.parent / "filler", run.step()
    try:
        with open(filler, "wb") as handle, suppress(OSError):
            while shutil.disk_usage(filler).free > 64 << 10:
                handle.write(bytes(64 << 10))
                handle.flush()
        if not wait_for(run, lambda: failures(run) and run.step() > before):
            return False
        with open(filler, "ab", buffering=0) as handle, suppress(OSError):
            while True:  # not a line of metrics finds room any more
                handle.write(bytes(1 << 10))
        time.sleep(FULL_S)
        return run.alive()
    finally:
        filler.unlink()


def failures(run: RunUnderTest) -> int:
    """Failed saves of the attempt, by the last line of metrics."""
    lines = run.paths.metrics.read_text().splitlines()
    with suppress(ValueError, IndexError):
        return int(json.loads(lines[-1]).get("save_failures", 0))
    return 0


def lost_steps(paths: RunPaths) -> int:
    """Most steps that one start repeated: those whose metrics it cut off."""
    counts = [0]
    for removed in paths.logs.glob("*/removed_metrics.jsonl"):
        counts.append(sum('"loss"' in line for line in removed.read_text().splitlines()))
    return max(counts)


def chaos(
    work: Path, seed: int, kills: int, faults: list[str], workers: int, overrides: list[str]
) -> dict[str, Any]:
    """Both runs, and what came of them."""
    work = work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    steps = STEPS_PER_FAULT * max(kills, 1)
    settings = [
        *COMMON,
        f"schedule.max_steps={steps}",
        f"data.path={prepared(work, *CORPUS)}",
        *overrides,
    ]
    began, draw, done = time.monotonic(), random.Random(seed), 0
    whole = RunUnderTest(work / "whole", workers, settings)
    if whole.process.wait():
        raise SystemExit(f"chaos: the undisturbed run failed; see {work / 'whole.log'}")
    run = RunUnderTest(work / "run", workers, settings)
    for part in tqdm(range(kills), unit="fault"):
        target = part * STEPS_PER_FAULT + draw.randrange(1, STEPS_PER_FAULT)
        if not wait_for(run, lambda target=target: run.step() >= target):
            break
        done += hurt(run, draw.choice(faults), draw)
    finished = wait_for(run, run.paths.done.is_file) and run.process.wait() == 0
    found = [read(folder) for folder in (work / "whole", work / "run")]
    same = first_differences(*found) == [] and found[0].keys() == found[1].keys()
    return {
        "kills": done,
        "survived": finished,
        "max_lost_steps": lost_steps(run.paths),
        "identical": same and first_tensor(work / "whole", work / "run") is None,
        "seed": seed,
        "faults": faults,
        "workers": workers,
        "steps": steps,
        "attempts": len(list(run.paths.logs.iterdir())),
        "seconds": round(time.monotonic() - began),
    }


def main() -> int:
    """Parse the command line, run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="empty folder for the corpus and both runs")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE of `roberta-dist launch`")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--faults", default="kill,save", help="comma-separated, drawn from")
    parser.add_argument("--workers", type=int, default=2, help="ranks")
    options = parser.parse_intermixed_args()
    faults = options.faults.split(",")
    unknown = sorted(set(faults) - set(FAULTS))
    if unknown:
        parser.error(f"--faults {','.join(unknown)}: must be of {', '.join(FAULTS)}")
    result = chaos(
        *(options.work, options.seed, options.kills, faults, options.workers, options.overrides)
    )
    print(json.dumps(result))
    whole = result["survived"] and result["identical"] and result["kills"] == options.kills
    return 0 if whole else 1


if __name__ == "__main__":
    raise SystemExit(main())
