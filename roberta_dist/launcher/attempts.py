"""Attempts at a run: one world watched to its end, and started again when it broke."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from roberta_dist.config.cluster import ClusterConfig
from roberta_dist.errors import INTERRUPTED, HangError, LaunchError
from roberta_dist.launcher.processes import Interrupts
from roberta_dist.launcher.restarts import Restarts
from roberta_dist.launcher.run_files import attempts_by_age
from roberta_dist.launcher.start import say
from roberta_dist.runtime.files import atomic_write
from roberta_dist.runtime.rundir import RunPaths, complete_steps

POLL_S = 0.2
GRACE_S = 10.0
LAST_WORD_S = 5.0


class Workers(Protocol):
    """The workers of one attempt, wherever they run."""

    @property
    def said(self) -> str:
        """How they ended, for a message."""

    @property
    def clean(self) -> bool:
        """True if whatever started them ended with exit code 0."""

    def wait(self, timeout: float) -> bool:
        """True if all ended within `timeout` seconds."""

    def ask_workers_to_stop(self) -> int:
        """Ask each to save and stop; 0 if there is none yet."""

    def end(self, grace_s: float) -> int:
        """End all, after `grace_s` seconds by force. Returns how many processes there were."""


@dataclass(frozen=True)
class Ended:
    """How one attempt ended.

    Attributes:
        said: what is known of it, for a message.
        clean: everything that was started ended with exit code 0.
        interrupted: a signal came.
    """

    said: str
    clean: bool
    interrupted: bool


def watch(start: Callable[[], Workers], told: Path) -> Ended:
    """Start workers, wait for their end and leave none behind.

    The first signal asks the workers to save and stop, the second ends them. Once a worker has left
    the file `told`, the others have LAST_WORD_S: DeepSpeed's launcher would wait half a minute for
    one that stands still.
    """
    with Interrupts() as interrupts:
        workers = start()
        answered, patience = 0, LAST_WORD_S
        try:
            while not workers.wait(POLL_S):
                patience -= POLL_S if told.exists() else 0.0
                if patience <= 0:
                    break
                if interrupts.count > answered:
                    answered = interrupts.count
                    _answer(workers, answered)
        finally:
            left = workers.end(GRACE_S if patience > 0 else 1.0)
        if left and not answered and patience > 0:
            say(f"ended {left} process(es) that outlived the DeepSpeed launcher")
        return Ended(workers.said, workers.clean, bool(interrupts.count))


def _answer(workers: Workers, count: int) -> None:
    if count == 1 and workers.ask_workers_to_stop():
        say("stopping: the workers save a checkpoint; a second Ctrl-C ends them at once")
    else:
        workers.end(0.0 if count > 1 else GRACE_S)


def run_attempts(
    cluster: ClusterConfig, paths: RunPaths, attempt: Callable[[int], tuple[int, bool]]
) -> int:
    """Attempts until the run is done, stopped or hopeless.

    A world of which a rank died or hung is started again, `cluster.restarts` times in a row without
    a new checkpoint, unless a STOP lies in the run folder.

    Args:
        cluster: says how often, and after what time.
        paths: of the run.
        attempt: one world from its start to its end, given the number of restarts before it:
            (exit code, whether a signal came).

    Returns:
        The exit code of the last attempt; 130 if a signal, or STOP, came between two.

    Raises:
        LaunchError: of the last attempt.
    """
    restarts, number = Restarts(cluster), 0
    while True:
        before = _saved(paths)
        failure: LaunchError | None = None
        try:
            code, interrupted = attempt(number)
        except LaunchError as error:
            failure, code, interrupted = error, error.exit_code, False
        broke = code in (LaunchError.exit_code, HangError.exit_code)
        delay = None
        if broke and not interrupted and not paths.stop.is_file():
            delay = restarts.delay(progress=bool(_saved(paths) - before))
        if delay is None:
            if failure is not None:
                raise failure
            return code
        reason = failure.problem if failure else f"{paths.root}: a rank hung"
        say(f"{reason}; starting again in {delay:g} s")
        if not _wait(delay, paths.stop):
            # for `status`: the run was stopped, whatever ended its last attempt
            atomic_write(attempts_by_age(paths)[-1] / "exit_code", f"{INTERRUPTED}\n")
            return INTERRUPTED
        number += 1


def _saved(paths: RunPaths) -> set[int]:
    """Steps of the checkpoints; damaged ones that a start puts aside are no new ones."""
    return set(complete_steps(paths.checkpoints))


def _wait(seconds: float, stop: Path) -> bool:
    """False if a signal came meanwhile, or the file `stop`."""
    with Interrupts() as interrupts:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not (interrupts.count or stop.is_file()):
            time.sleep(POLL_S)
        return not (interrupts.count or stop.is_file())
