"""DeepSpeed's launcher and everything below it, as one group that is ended as a whole.

It waits up to half a minute for workers that stand still, takes a signal as "end at once", and leaves
the workers running when it is killed. So we never trust its exit code, signal the workers ourselves,
and end whatever is left.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

GONE = (psutil.NoSuchProcess, ProcessLookupError, PermissionError)


class ProcessGroup:
    """A command in a session of its own, so that the terminal's Ctrl-C reaches only us."""

    def __init__(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        cwd: Path | None = None,
        output: int | None = None,
    ) -> None:
        self.leader = subprocess.Popen(
            list(command),
            env=dict(environ),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            start_new_session=True,
        )
        self._seen: set[Any] = set()

    @property
    def said(self) -> str:
        """How it ended, for a message."""
        return f"DeepSpeed's launcher says {self.leader.returncode}"

    @property
    def clean(self) -> bool:
        """True if it ended with exit code 0."""
        return self.leader.returncode == 0

    def wait(self, timeout: float) -> bool:
        """True if the command ended within `timeout` seconds."""
        with suppress(*GONE):
            self._seen.update(psutil.Process(self.leader.pid).children(recursive=True))
        try:
            self.leader.wait(timeout)
            return True
        except subprocess.TimeoutExpired:
            return False

    def members(self) -> list[Any]:
        """Live processes of the session, and descendants seen earlier that left it."""
        found = {process for process in self._seen if is_alive(process)}
        for pid in psutil.pids():
            with suppress(*GONE):
                if os.getsid(pid) == self.leader.pid and pid != self.leader.pid:
                    found.add(psutil.Process(pid))
        if self.leader.poll() is None:
            found.add(psutil.Process(self.leader.pid))
        return [process for process in found if is_alive(process)]

    def ask_workers_to_stop(self) -> int:
        """Ask each worker to save and stop; returns how many there were.

        SIGUSR1, because a worker takes a second SIGTERM or SIGINT as "now": a scheduler that
        signals every process by itself would otherwise cut the save short.
        """
        workers = 0
        for process in self.members():
            with suppress(*GONE):
                if _is_node_launcher(process.parent()):
                    process.send_signal(signal.SIGUSR1)
                    workers += 1
        return workers

    def end(self, grace_s: float) -> int:
        """End every member: SIGTERM, `grace_s` seconds, SIGKILL. Returns how many there were."""
        members = self.members()
        for process in members:
            with suppress(*GONE):
                process.terminate()
        # psutil would collect the leader, and its exit code would be lost
        deadline = time.monotonic() + grace_s
        psutil.wait_procs([p for p in members if p.pid != self.leader.pid], timeout=grace_s)
        with suppress(subprocess.TimeoutExpired):
            self.leader.wait(max(0.0, deadline - time.monotonic()))
        for process in {*members, *self.members()}:
            with suppress(*GONE):
                process.kill()
        self.leader.wait()
        return len(members)


def is_alive(process: Any) -> bool:
    """Whether a process runs; one that only waits to be collected does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except GONE:
        return False


def _is_node_launcher(process: Any) -> bool:
    return process is not None and "deepspeed.launcher.launch" in process.cmdline()


class Interrupts:
    """Counts SIGINT, SIGTERM, SIGHUP and SIGUSR1 while a launch runs."""

    HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

    def __init__(self) -> None:
        self.count = 0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        for signum in self.HANDLED:
            if signal.getsignal(signum) is not signal.SIG_IGN:  # nohup
                self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.count += 1
