"""A worker must not outlive its launcher, not even when that is killed with SIGKILL."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

LAUNCHER_VARIABLE = "ROBERTA_DIST_LAUNCHER_PID"
"""Process id of our launcher, set by it for its workers."""

POLL_S = 1.0


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _watch(launcher: int, parent: int, own_group: bool) -> None:
    while _alive(launcher) and os.getppid() == parent:
        time.sleep(POLL_S)
    if own_group and not _alive(launcher):
        # nobody is left to end the processes that this worker and its launchers started
        os.killpg(0, signal.SIGKILL)
    os._exit(143)


def _in_other_group(launcher: int) -> bool:
    """True under our launcher, which gives its workers a process group of their own."""
    try:
        return os.getpgid(launcher) != os.getpgrp()
    except ProcessLookupError:
        return False


def exit_with_parent() -> None:
    """End this process within about a second once the launcher, or the parent, is gone.

    Only under our launcher: under srun or a user's shell the parent is not ours to judge. Only
    where /proc tells who is alive: elsewhere the launcher's own clean-up has to do.
    """
    launcher = os.environ.get(LAUNCHER_VARIABLE, "")
    if launcher.isdigit() and Path("/proc/self/stat").is_file():
        pid = int(launcher)
        arguments = (pid, os.getppid(), _in_other_group(pid))
        threading.Thread(target=_watch, args=arguments, daemon=True).start()
