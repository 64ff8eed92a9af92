"""`logs`: what a rank, or a SLURM job, wrote, and what it goes on writing."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from roberta_dist.config.operate import LogsConfig
from roberta_dist.errors import ConfigError
from roberta_dist.launcher.run_files import attempts_by_age, is_run
from roberta_dist.launcher.status import look
from roberta_dist.launcher.status_text import printable
from roberta_dist.runtime.rundir import RunPaths
from roberta_dist.runtime.tail import offset_of_last

POLL_S = 0.3
LOOK_S = 3.0
"""How often it is asked whether the run still goes on."""
BLOCK = 1024 * 1024


def logs(config: LogsConfig) -> int:
    """Print the end of a log; with `follow` go on until the run ends.

    Raises:
        ConfigError: no run, or no such log.
    """
    paths = RunPaths(Path(config.run_dir).expanduser())
    if not is_run(paths.root):
        raise ConfigError(
            f"run_dir={paths.root}: no run there", "give the run_dir that `launch` was given"
        )
    log = find_log(paths, config.rank, config.attempt)
    if log is None and not (config.follow and look([paths.root])[0].standing.state.goes_on):
        raise ConfigError(*_missing(paths, config))
    try:
        offset = 0
        if log is not None:
            offset = _copy(log, offset_of_last(log, config.lines) if config.lines else 0)
        if config.follow:
            _follow(paths, config, log, offset)
    except BrokenPipeError:  # `logs | head`: nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def find_log(paths: RunPaths, rank: str, attempt: str) -> Path | None:
    """The log of a rank in an attempt, or of the newest job; None if it is not there.

    Args:
        paths: of the run.
        rank: a number, or `job`.
        attempt: `newest`, a number (of the newest job, on SLURM), or the name of a folder below logs/.
    """
    if rank == "job":
        written = [(path.stat().st_mtime, path) for path in (paths.root / "slurm").glob("*.out")]
        return max(written)[1] if written else None
    attempts = {path.name: path for path in attempts_by_age(paths)}
    folder = attempts.get(attempt)
    if attempt.isascii() and attempt.isdigit():
        ends = (f"attempt_{int(attempt):03d}", f".{int(attempt)}")
        folder = next((p for n, p in reversed(attempts.items()) if n.endswith(ends)), None)
    if attempt == "newest" and attempts:
        folder = list(attempts.values())[-1]
    log = folder / f"rank_{int(rank)}.log" if folder else None
    return log if log is not None and log.is_file() else None


def _follow(paths: RunPaths, config: LogsConfig, log: Path | None, offset: int) -> None:
    """Copy what comes, pass on to the next attempt's log, and end with the run."""
    looked = time.monotonic()
    ended = False
    while True:
        if log is not None:
            offset = _copy(log, offset)
        newest = find_log(paths, config.rank, config.attempt)
        if newest is not None and newest != log:
            print(f"==> {printable(str(newest))} <==", file=sys.stderr, flush=True)
            log, offset = newest, 0
            continue
        if ended:
            return
        time.sleep(POLL_S)
        if time.monotonic() - looked >= LOOK_S:
            ended = not look([paths.root])[0].standing.state.goes_on
            looked = time.monotonic()


def _copy(log: Path, offset: int) -> int:
    """Write the bytes from `offset` on to standard output; returns where they end."""
    with open(log, "rb") as handle:
        handle.seek(offset)
        while block := handle.read(BLOCK):
            sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()
        return handle.tell()


def _missing(paths: RunPaths, config: LogsConfig) -> tuple[str, str]:
    """Problem and remedy."""
    if config.rank == "job":
        return f"{paths.root / 'slurm'}: no output of a job there", "leave rank=job out"
    there = sorted(str(path.relative_to(paths.logs)) for path in paths.logs.glob("*/rank_*.log"))
    shown = ", ".join(printable(name) for name in there[-8:]) or "none yet"
    return (
        f"rank={config.rank} attempt={config.attempt}: no such log (there are: {shown})",
        "give rank= and attempt= of one that is there; what workers print before they have a log is "
        "on the terminal of `launch`, or in the job's output (rank=job)",
    )
