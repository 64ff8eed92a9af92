"""`stop`: a run saves and ends, whichever way it was started, and nothing starts it again by itself."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from roberta_dist.config.operate import StopConfig
from roberta_dist.errors import ConfigError, LaunchError
from roberta_dist.launcher.records import living_launcher
from roberta_dist.launcher.scheduler import Job, run_tool
from roberta_dist.launcher.standing import State
from roberta_dist.launcher.status import look
from roberta_dist.launcher.status_text import Report, printable
from roberta_dist.launcher.workers import workers_of
from roberta_dist.runtime.files import write_json
from roberta_dist.runtime.rundir import RunPaths

POLL_S = 0.5
POLL_SCHEDULER_S = 3.0
TELL_S = 15.0
Request = tuple[str, Callable[[], None]]
"""What is asked, as STOP remembers it, and the asking."""


def stop(config: StopConfig) -> int:
    """Ask the run to save and end, wait for it, and say from where it will go on.

    RUN/STOP is written first: whatever happens from then on, nothing restarts or requeues the run.

    Returns:
        0: it does not run any more, or did not before.

    Raises:
        ConfigError: no run, or one that can be stopped on another machine only.
        LaunchError: it still runs after `timeout_s`, or failed instead of saving.
    """
    folder = Path(config.run_dir).expanduser()
    paths, report = RunPaths(folder), look([folder])[0]
    if not report.standing.state.goes_on:
        _refuse_unknown(report)
        say(f"{folder}: not running ({_told(report)})")
        return 0
    requests = find_requests(report, config.now)
    if not requests:
        raise ConfigError(*_elsewhere(report))
    deadline = time.monotonic() + config.timeout_s
    asked = _read_asked(paths)
    told = time.monotonic()
    while True:
        _ask(paths, asked, requests, folder)
        if time.monotonic() > deadline:
            raise LaunchError(
                f"{folder}: still {_told(report)} after timeout_s={config.timeout_s:g}",
                "it goes on stopping; wait with a longer timeout_s=, or end it with now=true",
            )
        time.sleep(POLL_SCHEDULER_S if report.files.roles else POLL_S)
        report = look([folder])[0]
        if not report.standing.state.goes_on:
            return _ended(report, config.now)
        # a job of a chain may have begun, or gone back into the queue
        requests = find_requests(report, config.now)
        if time.monotonic() - told > TELL_S:
            told = time.monotonic()
            say(f"{folder}: {_told(report)}, at step {report.files.last.get('step', 0):,}")


def find_requests(report: Report, now: bool) -> list[Request]:
    """Whom to ask on this machine or of the scheduler; none where the run is out of reach."""
    files = report.files
    jobs = [job for job in report.jobs if job.goes_on or job.waits]
    if jobs:
        # those that wait come first: the end of the job before would let them begin
        jobs.sort(key=lambda job: job.goes_on)
        # an array, of which each part is a job here, is asked once
        return list(dict(_job_request(job, files.roles[job.job_id], now) for job in jobs).items())
    here = socket.gethostname()
    launch = files.launches[-1] if files.launches else None
    launcher = living_launcher(launch) if launch and launch.job_id is None else None
    if launcher is not None:
        # a second, other signal means "now", and never melts into one with the first
        signals = [signal.SIGTERM, signal.SIGUSR1] if now else [signal.SIGTERM]
        return [
            (f"{signum.name} to launcher {here}:{launcher.pid}", _sending(launcher, signum))
            for signum in signals
        ]
    signum = signal.SIGKILL if now else signal.SIGUSR1
    return [
        (f"{signum.name} to rank {rank}, {here}:{process.pid}", _sending(process, signum))
        for rank, process in workers_of(files.root).items()
    ]


def job_command(job: Job, role: str, now: bool) -> list[str]:
    """`scancel` for one job: its script is asked to let the workers save; what waits is taken out.

    Args:
        job: that waits or goes on.
        role: `train`; other jobs have nothing to save and go on from what they wrote.
        now: end it.
    """
    if job.waits:
        return ["scancel", "--state=PENDING", job.job_id]
    if now or role != "train":
        return ["scancel", job.job_id]
    return ["scancel", "--signal=USR1", "--batch", job.job_id]


def say(message: str) -> None:
    """One line on standard error."""
    with suppress(OSError):
        print(f"roberta-dist stop: {printable(message)}", file=sys.stderr, flush=True)


def _job_request(job: Job, role: str, now: bool) -> Request:
    command = job_command(job, role, now)
    # a job that went back into the queue is asked anew
    return f"{' '.join(command)} (start {job.restarts})", lambda: _run(command)


def _run(command: list[str]) -> None:
    run_tool(command)


def _sending(process: Any, signum: signal.Signals) -> Callable[[], None]:
    def send() -> None:
        with suppress(psutil.NoSuchProcess):
            try:
                process.send_signal(signum)
            except psutil.AccessDenied as error:
                raise ConfigError(
                    f"process {process.pid}: belongs to {process.username()}", "ask that user"
                ) from error

    return send


def _ask(paths: RunPaths, asked: list[str], requests: list[Request], folder: Path) -> None:
    """Make each request once in the life of a STOP: a second SIGTERM would end the run at once."""
    new = [request for request in requests if request[0] not in asked]
    if not paths.stop.is_file() or new:
        _write(paths, asked)
    for name, ask in new:
        ask()
        asked.append(name)
        _write(paths, asked)
        say(f"{folder}: {name}")


def _write(paths: RunPaths, asked: list[str]) -> None:
    write_json(paths.stop, {"asked": asked, "host": socket.gethostname(), "pid": os.getpid()})


def _read_asked(paths: RunPaths) -> list[str]:
    with suppress(OSError, ValueError, KeyError, TypeError):
        return [str(name) for name in json.loads(paths.stop.read_text())["asked"]]
    return []


def _ended(report: Report, now: bool) -> int:
    files, state = report.files, report.standing.state
    if state in (State.failed, State.lost) and not now:
        raise LaunchError(
            f"{files.root}: ended, but not as it was asked to: {_told(report)}",
            f"read {files.attempt}/rank_*.log",
        )
    say(f"{files.root}: {_told(report)}")
    return 0


def _told(report: Report) -> str:
    state, detail = report.standing.state.value, report.standing.detail
    return f"{state}: {detail}" if detail else state


def _refuse_unknown(report: Report) -> None:
    if report.standing.state is State.unknown:
        raise ConfigError(*_elsewhere(report))


def _elsewhere(report: Report) -> tuple[str, str]:
    """Problem and remedy."""
    files = report.files
    launch = files.launches[-1] if files.launches else None
    if launch is not None and launch.job_id is not None:
        where = "on a machine of the SLURM cluster"
    elif launch is not None:
        where = f"on {launch.host}"
    else:
        where = "on a machine where a worker of it runs"
    return (
        f"{files.root}: cannot be reached from {socket.gethostname()} ({_told(report)})",
        f"run `roberta-dist stop` {where}",
    )
