"""What the files of a run folder say of how it does; read while it goes on, changed never."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from roberta_dist.config.load import read_values
from roberta_dist.errors import ConfigError
from roberta_dist.launcher.records import CLOCK_S, Launch, read_launches
from roberta_dist.runtime.metrics import rows_backwards
from roberta_dist.runtime.rundir import (
    COMPLETE,
    DAMAGED,
    RunPaths,
    complete_steps,
    is_done,
    starting_steps,
)
from roberta_dist.runtime.tail import last_lines

Row = dict[str, Any]
RECENT_ROWS = 50
MOST_ROWS = 5000
LOG_LINES = 400
COMPLAINTS = 3
RECORD = re.compile(r"\S+ \S+ (INFO|WARNING|ERROR|CRITICAL) ")
TRACEBACK = "Traceback (most recent call last):"


@dataclass(frozen=True)
class RunFiles:
    """One run folder.

    Attributes:
        root: the folder.
        launches: of jobs.jsonl, oldest first.
        max_steps: of the newest configuration; None before there is one.
        attempts: folders below logs/, oldest first.
        exit_code: that the newest attempt left; None if it left none, or was launched again since.
        done, stopped_at: step in DONE, if that stands, and in REQUEUE, if nothing came after it.
        asked_to_stop: when STOP was written; None without it.
        attempt_began: when the newest attempt's configuration was written.
        world_size: of the newest attempt that got as far.
        first_step: step from which the newest attempt went on.
        rows: training lines of metrics.jsonl, newest first, as many as the pace is taken from.
        held_out: the newest line of an evaluation.
        checkpoint: step of the newest complete checkpoint, and when it was written.
        damaged: names of checkpoints that were set aside.
        written: when the run last wrote metrics or rank 0's log; None if it never did.
        disk_free: bytes.
        complaints: the last warnings and errors of rank 0 in the newest attempt.
    """

    root: Path
    launches: list[Launch]
    max_steps: int | None
    attempts: list[Path]
    exit_code: int | None
    done: int | None
    stopped_at: int | None
    asked_to_stop: float | None
    attempt_began: float | None
    world_size: int | None
    first_step: int
    rows: list[Row]
    held_out: Row | None
    checkpoint: tuple[int, float] | None
    damaged: list[str]
    written: float | None
    disk_free: int
    complaints: list[str]

    @property
    def last(self) -> Row:
        """The newest training line; empty before the first."""
        return self.rows[0] if self.rows else {}

    @property
    def attempt(self) -> Path | None:
        """Folder of the newest attempt."""
        return self.attempts[-1] if self.attempts else None

    @property
    def restarts(self) -> int:
        """Attempts after the first of the newest launch."""
        since = self.launches[-1].time if self.launches else 0.0
        return max(0, sum((_mtime(path) or 0.0) >= since for path in self.attempts) - 1)

    @property
    def roles(self) -> dict[str, str]:
        """SLURM job → what it is for, of all launches."""
        return {launch.job_id: launch.role for launch in self.launches if launch.job_id is not None}

    @property
    def newest_jobs(self) -> list[str]:
        """SLURM jobs of the newest launch: one command may submit several."""
        last = self.launches[-1] if self.launches else None
        own = [
            item
            for item in self.launches
            if last and (item.host, item.pid) == (last.host, last.pid)
        ]
        return [item.job_id for item in own if item.job_id is not None]


def is_run(folder: Path) -> bool:
    """Whether a launch or a worker ever wrote there."""
    paths = RunPaths(folder)
    return folder.is_dir() and any(
        path.exists() for path in (paths.config_yaml, paths.jobs, paths.logs)
    )


def read_run_files(folder: Path) -> RunFiles:
    """Look at a run folder.

    Raises:
        ConfigError: it is none.
    """
    if not is_run(folder):
        raise ConfigError(
            f"run_dir={folder}: no run there (neither config.yaml, jobs.jsonl nor logs/)",
            "give the run_dir that `launch` was given",
        )
    paths = RunPaths(folder)
    values = _values(paths.config_yaml)
    max_steps = values.get("schedule", {}).get("max_steps")
    attempts = attempts_by_age(paths)
    newest = attempts[-1] if attempts else None
    launches = read_launches(paths)
    since = launches[-1].time - CLOCK_S if launches else 0.0
    log = newest / "rank_0.log" if newest else None
    times = [time for path in (paths.metrics, log) if path and (time := _mtime(path)) is not None]
    return RunFiles(
        root=folder,
        launches=launches,
        max_steps=max_steps,
        attempts=attempts,
        exit_code=_exit_code(newest, since) if newest else None,
        done=_done(paths, max_steps or 0),
        stopped_at=_stopped_at(paths, newest, since),
        asked_to_stop=_mtime(paths.stop),
        attempt_began=_mtime(newest / "config.yaml") if newest else None,
        world_size=_read_json(paths.environment_json).get("world_size"),
        first_step=next(reversed(starting_steps(paths)), 0),
        rows=_recent_rows(paths, values),
        held_out=_held_out(paths, values),
        checkpoint=_checkpoint(paths),
        damaged=sorted(path.name for path in paths.checkpoints.glob(f"{DAMAGED}*")),
        written=max(times, default=None),
        disk_free=shutil.disk_usage(folder).free,
        complaints=complaints(last_lines(log, LOG_LINES)) if log and log.is_file() else [],
    )


def attempts_by_age(paths: RunPaths) -> list[Path]:
    """Folders below logs/. A folder changes when a file is added: the newest attempt's did last."""
    found = [(_mtime(path) or 0.0, path) for path in paths.logs.glob("*") if path.is_dir()]
    return [path for _, path in sorted(found)]


def _exit_code(attempt: Path, since: float) -> int | None:
    path = attempt / "exit_code"
    with suppress(OSError, ValueError):
        return int(path.read_text()) if path.stat().st_mtime >= since else None
    return None


def complaints(lines: list[str]) -> list[str]:
    """The last warnings and errors of a rank's log: their first line, of a traceback its last."""
    records: list[list[str]] = []
    for line in lines:
        if RECORD.match(line):
            records.append([line])
        elif records and line.strip():
            records[-1].append(line)
    told = [record for record in records if record[0].split(" ", 3)[2] != "INFO"]
    return [record[0].replace(TRACEBACK, record[-1].strip()) for record in told[-COMPLAINTS:]]


def _recent_rows(paths: RunPaths, values: dict[str, Any]) -> list[Row]:
    """As many as one evaluation and one save come in, so that the pace holds their share."""
    every = [values.get("evaluate", {}).get("every_steps"), values.get("checkpoint", {}).get("every_steps")]  # fmt: skip
    wanted = max([RECENT_ROWS, *(n + 1 for n in every if isinstance(n, int))])
    rows = rows_backwards(paths.metrics, '"loss"')
    return list(islice(rows, min(wanted, MOST_ROWS)))


def _held_out(paths: RunPaths, values: dict[str, Any]) -> Row | None:
    """The newest evaluation; a run that makes none is not searched for one."""
    if values and not values.get("evaluate", {}).get("every_steps"):
        return None
    return next(rows_backwards(paths.metrics, '"eval_loss"'), None)


def _checkpoint(paths: RunPaths) -> tuple[int, float] | None:
    for step in reversed(complete_steps(paths.checkpoints)):
        time = _mtime(paths.checkpoints / f"step_{step:08d}" / COMPLETE)
        if time is not None:  # it may have been deleted meanwhile
            return step, time
    return None


def _done(paths: RunPaths, max_steps: int) -> int | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        if is_done(paths, max_steps):
            return int(_read_json(paths.done)["step"])
    return None


def _stopped_at(paths: RunPaths, attempt: Path | None, since: float) -> int | None:
    left = _mtime(paths.requeue)
    failed = _mtime(attempt / "exit_code") if attempt else None
    if left is None or left < max(since, failed or 0.0):
        return None
    with suppress(KeyError, ValueError, TypeError):
        return int(_read_json(paths.requeue)["step"])
    return None


def _values(path: Path) -> dict[str, Any]:
    """Of config.yaml; {} where there is none, or it is damaged: the other files still speak."""
    with suppress(ConfigError):
        return read_values(path)
    return {}


def _read_json(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        value = json.loads(path.read_bytes())
        return value if isinstance(value, dict) else {}
    return {}


def _mtime(path: Path) -> float | None:
    with suppress(OSError):
        return path.stat().st_mtime
    return None
