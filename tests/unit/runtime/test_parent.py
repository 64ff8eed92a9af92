"""A worker ends when its launcher is killed, and only then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from roberta_dist.runtime.parent import LAUNCHER_VARIABLE

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(not os.path.isfile("/proc/self/stat"), reason="the watch needs /proc"),
]

WORKER = """
import os, sys, time
from roberta_dist.runtime.parent import exit_with_parent
exit_with_parent()
print(os.getpid(), flush=True)
time.sleep(60)
"""
MIDDLE = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", sys.argv[1]])
time.sleep(60)
"""
LAUNCHER = f"""
import os, subprocess, sys, time
if sys.argv[3] == "ours":
    os.environ["{LAUNCHER_VARIABLE}"] = str(os.getpid())
middle = [sys.executable, "-c", sys.argv[1], sys.argv[2]]
print(subprocess.Popen(middle, start_new_session=True).pid, flush=True)
time.sleep(60)
"""
"""Ours starts DeepSpeed's in a group of its own, and that one the worker."""


@pytest.fixture
def start():
    """Start launcher → DeepSpeed's launcher → worker; gives (launcher, {name: pid})."""
    started = []

    def run(whose):
        command = [sys.executable, "-c", LAUNCHER, MIDDLE, WORKER, whose]
        launcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(launcher.pid)
        pids = {name: int(launcher.stdout.readline()) for name in ("middle", "worker")}
        started.extend(pids.values())
        return launcher, pids

    yield run
    for pid in started:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def left_after(pids, seconds):
    """Names of the processes that live for `seconds` more."""
    deadline = time.monotonic() + seconds
    while any(map(alive, pids.values())) and time.monotonic() < deadline:
        time.sleep(0.05)
    return {name for name, pid in pids.items() if alive(pid)}


def test_a_killed_launcher_takes_everyone_along(start):
    launcher, pids = start("ours")
    assert left_after(pids, 1.5) == {"middle", "worker"}
    launcher.kill()
    launcher.wait()
    assert left_after(pids, 5) == set()


def test_a_worker_does_not_outlive_deepspeeds_launcher(start):
    launcher, pids = start("ours")
    os.kill(pids["middle"], signal.SIGKILL)
    assert left_after(pids, 5) == set()
    assert launcher.poll() is None


def test_under_another_launcher_nothing_is_watched(start):
    launcher, pids = start("theirs")
    launcher.kill()
    launcher.wait()
    assert left_after(pids, 2) == {"middle", "worker"}
