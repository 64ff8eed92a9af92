"""Acceptance of the launcher by ssh and on this machine: points 4, 7 and 8 of `launcher`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import psutil
import run_support as runs
import sshd_support
from launcher_work import WORK, corpus
from points import pytest_passes, say

HOSTS_TESTS = "tests/integration/test_hosts.py"


@contextmanager
def two_hosts() -> Iterator[sshd_support.SshHosts]:
    """Two sshd of our own."""
    made = sshd_support.SshHosts(Path(tempfile.mkdtemp(dir=WORK)) / "ssh")
    try:
        yield made
    finally:
        made.stop()


def start(
    run_dir: Path, *overrides: str, settings: Sequence[str] = runs.TINY
) -> subprocess.Popen[bytes]:
    """`launch` in its own process; what it says is in RUN.out."""
    command = [
        sys.executable, "-m", "roberta_dist.cli", "launch", f"run_dir={run_dir}",
        f"data.path={corpus()}", *settings, "cluster.threads_per_worker=1", *overrides,
    ]  # fmt: skip
    with open(f"{run_dir}.out", "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def wait_for_step(run_dir: Path, step: int, launch: subprocess.Popen[bytes]) -> None:
    """Return as soon as metrics.jsonl shows `step`."""
    deadline = time.monotonic() + 180
    while not (found := runs.metrics(run_dir)) or found[-1]["step"] < step:
        if launch.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(Path(f"{run_dir}.out").read_text()[-4000:])
        time.sleep(0.005)


def processes(run_dir: Path) -> list[psutil.Process]:
    """Live processes with the run folder in their command line, and what they started."""
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        try:
            if any(f"{run_dir}/" in word for word in process.cmdline()):
                found |= {process, *process.children(recursive=True)}
        except psutil.Error:
            continue
    return [p for p in found if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def same(left: Path, right: Path) -> bool:
    """Deterministic columns and weights, bit for bit."""
    last = "checkpoints/step_00000040"
    equal = runs.deterministic(left) == runs.deterministic(right)
    return equal and runs.same_weights(left / last, right / last)


def point_4() -> bool:
    """4: two hosts over ssh and over pdsh, a host lost on the way, and every refusal."""
    local = WORK / "local"
    start(local, "cluster.workers_per_node=2").wait()
    ok = True
    with two_hosts() as hosts:
        for name, overrides in (
            ("ssh", []),
            ("pdsh", ["cluster.hosts.runner=pdsh", "cluster.hosts.master_addr=127.0.0.1",
                      "cluster.interface=lo", "cluster.environment={DS_ACCELERATOR: cpu}"]),
        ):  # fmt: skip
            run_dir = WORK / name
            code = start(run_dir, *hosts.overrides(), *overrides).wait()
            steps = len({line["step"] for line in runs.metrics(run_dir) if "loss" in line})
            equal = same(run_dir, local)
            fine = code == 0 and (run_dir / "DONE").is_file() and equal
            ok &= say(
                "4", fine, f"{name}: {steps} steps on 2 hosts, equal to 2 local ranks: {equal}"
            )
    ok &= lost_host(local)
    return ok & say("4", *pytest_passes(HOSTS_TESTS, "-k", "host or port or interpreter or folder"))


def lost_host(local: Path) -> bool:
    """A host that is gone in the middle, with `cluster.shrink`."""
    run_dir = WORK / "lost"
    with two_hosts() as hosts:
        settings = ["cluster.shrink=true", "cluster.restart_delay_s=1", "schedule.max_steps=2000"]
        launch = start(run_dir, *hosts.overrides(), *settings)
        wait_for_step(run_dir, 12, launch)
        server = psutil.Process(hosts.servers["node2"].pid)
        for process in [server, *server.children(recursive=True)]:
            process.kill()
        attempts, deadline = run_dir / "attempts.log", time.monotonic() + 120
        while len(attempts.read_text().splitlines()) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        again = attempts.read_text().splitlines()[-1]
        launch.send_signal(signal.SIGINT)
        code = launch.wait(60)
    fine = "attempt_001 step=10 world_size=1" in again and code == 0
    return say("4", fine and (run_dir / "REQUEUE").is_file(), f"host lost at step 12: {again}")


def point_7() -> bool:
    """7: the launcher killed with -9, in training and while workers still import."""
    ok = True
    with two_hosts() as hosts:
        for kind, overrides in (
            ("local", ["cluster.workers_per_node=2"]),
            ("ssh", hosts.overrides()),
        ):
            for moment in ("training", "start-up"):
                run_dir = WORK / f"killed_{kind}_{moment}"
                launch = start(run_dir, *overrides, "schedule.max_steps=100000")
                if moment == "training":
                    wait_for_step(run_dir, 3, launch)
                else:
                    wait_for_workers(run_dir)
                there = [p for p in processes(run_dir) if p.pid != launch.pid]
                os.kill(launch.pid, signal.SIGKILL)
                began = time.monotonic()
                launch.wait()
                while (
                    left := [
                        p for p in there if p.is_running() and p.status() != psutil.STATUS_ZOMBIE
                    ]
                ) or processes(run_dir):
                    if time.monotonic() - began > 30:
                        break
                    time.sleep(0.05)
                took = time.monotonic() - began
                fine = not left and took <= 15 and len(there) >= 3
                ok &= say(
                    "7", fine, f"{kind}, {moment}: {len(there)} processes gone after {took:.1f} s (≤ 15)"
                )  # fmt: skip
    return ok


def wait_for_workers(run_dir: Path) -> None:
    """Both worker processes exist; they import torch for seconds."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        commands = []
        for process in processes(run_dir):
            try:
                commands.append(process.cmdline()[:3])
            except psutil.Error:
                continue
        if sum(any("pretrain.py" in word for word in command) for command in commands) == 2:
            return
        time.sleep(0.05)
    raise SystemExit(f"no workers of {run_dir}")


def point_8() -> bool:
    """8: from the command to the first step, of the tiny model on two ranks, and what it is made of."""
    corpus()
    ok = True
    settings = [setting for setting in runs.TINY if not setting.startswith("model.")]
    with two_hosts() as hosts:
        for kind, overrides in (
            ("local", ["cluster.workers_per_node=2"]),
            ("ssh", hosts.overrides()),
        ):
            for attempt in range(2):
                run_dir = WORK / f"first_{kind}_{attempt}"
                began = time.time()
                few = ["model=tiny", "schedule.max_steps=5", *overrides]
                launch = start(run_dir, *few, settings=settings)
                wait_for_step(run_dir, 1, launch)
                took = time.time() - began
                launch.wait()
                parts = ", ".join(f"{k} {v:.1f}" for k, v in parts_of(run_dir, began, took).items())
                ok &= say("8", took < 25, f"{kind}: first step after {took:.1f} s (< 25): {parts}")
    return ok


def parts_of(run_dir: Path, began: float, took: float) -> dict[str, float]:
    """Seconds of each part, from what the run folder says."""
    job = json.loads((run_dir / "jobs.jsonl").read_text().splitlines()[0])
    log = (run_dir / "logs/attempt_000/rank_0.log").read_text()
    match = re.search(r"^(\S+ \S+) INFO start-up: (.*)$", log, re.MULTILINE)
    assert match is not None, log
    laps = {name: float(seconds) for name, seconds in re.findall(r"(\w+) ([\d.]+) s", match[2])}
    ready = datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S,%f").timestamp()
    checked = job["time"] - began
    deepspeed = ready - sum(laps.values()) - job["time"]
    first = began + took - ready
    return {
        "launch (compose, checks)": checked, "deepspeed's launcher": deepspeed, **laps,
        "trackers and first step": first,
    }  # fmt: skip
