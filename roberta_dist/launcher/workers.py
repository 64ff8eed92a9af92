"""The workers of a run in this machine's process table, however they were started."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from roberta_dist.launcher.processes import GONE, is_alive

CONFIG_FOLDERS = ("logs", "slurm")
"""Below a run folder: what holds the folder of each attempt, and of each submission."""


@dataclass(frozen=True)
class Worker:
    """One rank.

    Attributes:
        rank: from its environment.
        config: the resolved configuration that it was given, RUN/config.yaml, an attempt's or a submission's.
        process: of psutil.
    """

    rank: int
    config: Path
    process: Any

    def belongs_to(self, run_dir: Path) -> bool:
        """Whether it works on the run in `run_dir`, which must be resolved."""
        folder = self.config.parent
        above = folder.parent
        return folder == run_dir or (above.name in CONFIG_FOLDERS and above.parent == run_dir)


def find_workers() -> list[Worker]:
    """The workers of this machine's processes that this user may look into, by rank."""
    found: dict[int, Worker] = {}
    for process in psutil.process_iter():
        with suppress(*GONE, psutil.Error):
            words = process.cmdline()
            if (given := given_config(words)) is not None and is_alive(process):
                environ = process.environ()
                rank = environ.get("RANK", environ.get("SLURM_PROCID", "0"))
                config = (Path(process.cwd()) / given).resolve()
                found[process.pid] = Worker(int(rank), config, process)
    # what a worker forks has its command line and environment
    own = [worker for worker in found.values() if _parent(worker) not in found]
    return sorted(own, key=lambda worker: worker.rank)


def workers_of(run_dir: Path) -> dict[int, Any]:
    """Rank → process of the workers of one run on this machine."""
    resolved = run_dir.resolve()
    return {w.rank: w.process for w in find_workers() if w.belongs_to(resolved)}


def given_config(words: Sequence[str]) -> Path | None:
    """The configuration that a worker with this command line was given; None if it is no worker.

    Example: `python -u launch/pretrain.py runs/a/config.yaml` → runs/a/config.yaml.
    """
    if len(words) < 3 or "python" not in Path(words[0]).name:
        return None  # srun, ssh and shells carry a worker's command line as their arguments
    for index, word in enumerate(words[1:4], start=1):
        before, after = words[index - 1], words[index + 1 :]
        is_script = Path(word).name == "pretrain.py"
        if len(after) == 1 and (is_script or (before, word) == ("-m", "roberta_dist.train")):
            return Path(after[0])
        if word == "pretrain" and Path(before).name in ("roberta-dist", "roberta_dist.cli"):
            run_dir = [a.removeprefix("run_dir=") for a in after if a.startswith("run_dir=")]
            return Path(_unquoted(run_dir[-1])) / "config.yaml" if run_dir else None
    return None


def _unquoted(value: str) -> str:
    """A value as Hydra reads it: quotes around it are no part of it."""
    quote = value[:1]
    if len(value) > 1 and quote in ("'", '"') and value.endswith(quote):
        return value[1:-1].replace(f"\\{quote}", quote)
    return value


def _parent(worker: Worker) -> int:
    with suppress(*GONE, psutil.Error):
        return int(worker.process.ppid())
    return 0
