"""Run folders as launches and workers leave them."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from roberta_dist.config.load import to_yaml
from roberta_dist.config.optim import ScheduleConfig
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.runtime.rundir import RunPaths

NOW = time.time()
GONE = 4_999_999
"""Beyond what Linux gives to processes."""


class Folder:
    """A run that began an hour ago; each method adds one thing that is left behind."""

    def __init__(self, root: Path) -> None:
        self.paths = RunPaths(root)
        root.mkdir(parents=True)

    def config(self, max_steps: int = 100) -> Folder:
        schedule = ScheduleConfig(max_steps=max_steps, warmup_steps=1)
        config = PretrainConfig(run_dir=str(self.paths.root), schedule=schedule)
        self.paths.config_yaml.write_text(to_yaml(config))
        return self

    def launched(self, kind: str = "local", ago: float = 3600, **line: Any) -> Folder:
        whole = {"time": NOW - ago, "kind": kind, "host": socket.gethostname(), "pid": GONE, **line}
        with open(self.paths.jobs, "a") as jobs:
            jobs.write(json.dumps(whole) + "\n")
        return self

    def attempt(self, number: int = 0, ago: float = 3500, log: str = "", step: int = 0) -> Folder:
        folder = self.paths.logs / f"attempt_{number:03d}"
        folder.mkdir(parents=True)
        (folder / "config.yaml").touch()
        (folder / "rank_0.log").write_text(log)
        with open(self.paths.attempts_log, "a") as attempts:
            attempts.write(
                f"2026-01-01T00:00:00 {folder.name} step={step} world_size=2 changes: none\n"
            )
        for path in (folder / "config.yaml", folder / "rank_0.log", folder):
            self._aged(path, ago)
        return self

    def exit_code(self, code: int, number: int = 0, ago: float = 600) -> Folder:
        folder = self.paths.logs / f"attempt_{number:03d}"
        (folder / "exit_code").write_text(f"{code}\n")
        self._aged(folder / "exit_code", ago)
        self._aged(folder, ago)
        return self

    def metrics(self, steps: int, ago: float = 600, first: int = 1, seconds: float = 2) -> Folder:
        """A second of the time of a step is not the step's own: evaluations and saves."""
        with open(self.paths.metrics, "a") as lines:
            for step in range(first, steps + 1):
                row = {"step": step, "time": NOW - ago - (steps - step) * seconds, "loss": 5.0 - step / 100,
                       "tokens_per_s": 1000.0, "step_time_s": seconds - 1, "skipped": 1,
                       "save_failures": 0, "epoch": 0.5}  # fmt: skip
                lines.write(json.dumps(row) + "\n")
            lines.write(json.dumps({"step": steps, "eval_loss": 4.5}) + "\n" + '{"step": 9, "lo')
        self._aged(self.paths.metrics, ago)
        return self

    def checkpoint(self, step: int, ago: float = 700) -> Folder:
        folder = self.paths.checkpoints / f"step_{step:08d}"
        folder.mkdir(parents=True)
        (folder / "COMPLETE").touch()
        self._aged(folder / "COMPLETE", ago)
        return self

    def sentinel(self, name: str, step: int, ago: float = 500) -> Folder:
        path = self.paths.root / name
        path.write_text(json.dumps({"step": step, "reason": "max_steps"}))
        self._aged(path, ago)
        return self

    @staticmethod
    def _aged(path: Path, ago: float) -> None:
        os.utime(path, (NOW - ago, NOW - ago))
