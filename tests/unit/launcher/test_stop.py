"""`stop` on real processes that stand in for launchers and workers, and on what SLURM answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import datetime

import pytest
from run_folders import Folder

from roberta_dist.config.operate import StopConfig
from roberta_dist.errors import ConfigError, LaunchError
from roberta_dist.launcher.scheduler import Job
from roberta_dist.launcher.stop import job_command, stop

pytestmark = pytest.mark.unit

SAVES = """\
import json, os, signal, sys, time
run, seconds = sys.argv[1].removesuffix("/config.yaml"), float(os.environ.get("SECONDS_TO_SAVE", "0.5"))
got = []
def handle(signum, frame):
    got.append(signal.Signals(signum).name)
for signum in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(signum, handle)
open(run + "/ready", "w").close()
while not got:
    time.sleep(0.05)
deadline = time.monotonic() + seconds
while time.monotonic() < deadline and len(got) < 2:
    time.sleep(0.05)
with open(run + "/got", "w") as out:
    json.dump(got, out)
if len(got) < 2 and seconds:
    with open(run + "/REQUEUE", "w") as out:
        json.dump({"step": 7, "reason": "signal"}, out)
"""


@pytest.fixture
def run(tmp_path):
    return Folder(tmp_path / "$(touch pwned) 'a\" `b`\nc").config()


@pytest.fixture
def start(run, tmp_path):
    script = tmp_path / "pretrain.py"
    script.write_text(SAVES)
    started = []

    def start_one(**environ):
        command = [sys.executable, str(script), str(run.paths.config_yaml)]
        started.append(subprocess.Popen(command, env=os.environ | environ, cwd=tmp_path))
        deadline = time.monotonic() + 20
        while not (run.paths.root / "ready").is_file():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return started[-1]

    yield start_one
    for process in started:
        process.kill()
        process.wait()


def got(run):
    return json.loads((run.paths.root / "got").read_text())


def stopped(run, **settings):
    return stop(StopConfig(run_dir=str(run.paths.root), **settings))


def test_a_launcher_is_asked_once_and_after_stop_was_left(run, start, tmp_path, capsys):
    process = start(SECONDS_TO_SAVE="4")
    run.launched(pid=process.pid, time=time.time())
    with pytest.raises(LaunchError, match=r"still stopping: launcher .* timeout_s=0\.5"):
        stopped(run, timeout_s=0.5)
    assert stopped(run) == 0  # a second SIGTERM would have ended it at once
    assert got(run) == ["SIGTERM"] and process.wait() == 0
    assert "stopped: on request at step 7" in capsys.readouterr().err
    assert run.paths.stop.is_file() and not list(tmp_path.rglob("pwned"))
    assert stopped(run) == 0
    assert "not running (stopped: on request at step 7" in capsys.readouterr().err


def test_now_does_not_wait_for_a_save(run, start):
    process = start(SECONDS_TO_SAVE="60")
    run.launched(pid=process.pid, time=time.time())
    assert stopped(run, now=True) == 0
    assert sorted(got(run)) == ["SIGTERM", "SIGUSR1"] and not run.paths.requeue.exists()


def test_workers_that_lost_their_launcher_or_never_had_one(run, start, capsys):
    run.launched().attempt()  # by a process that is gone
    process = start(RANK="3")
    assert stopped(run) == 0
    assert got(run) == ["SIGUSR1"] and process.wait() == 0
    assert "SIGUSR1 to rank 3" in capsys.readouterr().err


def test_a_run_that_ends_otherwise_is_told(run, start):
    run.attempt()
    start(SECONDS_TO_SAVE="0")
    with pytest.raises(LaunchError, match="ended, but not as it was asked to: lost"):
        stopped(run)


def test_a_run_of_another_machine_is_left_alone(run):
    run.launched(host="elsewhere").attempt()
    for ago in (3000, 1):
        run.metrics(5, ago=ago)
        with pytest.raises(ConfigError, match="launched on elsewhere") as caught:
            stopped(run)
        assert "on elsewhere" in caught.value.remedy and not run.paths.stop.exists()


def test_a_scheduler_that_is_not_here(run, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    run.launched("slurm", job_id="7")
    with pytest.raises(ConfigError, match="squeue: not found") as caught:
        stopped(run)
    assert "SLURM cluster" in caught.value.remedy


def test_nothing_to_stop(run, capsys):
    assert stopped(run) == 0
    assert "not running (not started)" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no run there"):
        stop(StopConfig(run_dir=str(run.paths.root.parent)))


def job(state):
    moment = datetime(2026, 11, 27)
    return Job("12", state, moment, moment, "", 0, "", "")


def test_what_a_job_is_told():
    assert job_command(job("PENDING"), "train", False) == ["scancel", "--state=PENDING", "12"]
    assert job_command(job("RUNNING"), "train", False) == [
        "scancel", "--signal=USR1", "--batch", "12",
    ]  # fmt: skip
    assert job_command(job("RUNNING"), "train", True) == ["scancel", "12"]
    assert job_command(job("RUNNING"), "prepare", False) == ["scancel", "12"]


def test_a_chain_of_jobs(run, monkeypatch, tmp_path, capsys):
    """Those that wait go first; each is asked once; the end is waited for."""
    monkeypatch.setattr("roberta_dist.launcher.stop.POLL_SCHEDULER_S", 0.1)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    state = tmp_path / "state"
    state.write_text("7|RUNNING|N/A|N/A|node1|0|0|None|\n8|PENDING|N/A|N/A||0|0|Dependency|\n")
    write_tool(tmp_path / "squeue", f"cat {state}")
    # whatever happens to the job from then on, STOP is there
    write_tool(tmp_path / "scancel", f'test -e "$RUN_DIR/STOP" && echo "$@" >> {tmp_path}/asked')
    monkeypatch.setenv("RUN_DIR", str(run.paths.root))
    run.launched("slurm", job_id="7").launched("slurm", job_id="8")
    with pytest.raises(LaunchError, match="still stopping"):
        stopped(run, timeout_s=0.5)
    assert (tmp_path / "asked").read_text() == "--state=PENDING 8\n--signal=USR1 --batch 7\n"
    state.write_text("7|RUNNING|N/A|N/A|node1|1|0|None|\n")  # it was requeued all the same
    with pytest.raises(LaunchError):
        stopped(run, timeout_s=0.5)
    assert (tmp_path / "asked").read_text().splitlines()[2:] == ["--signal=USR1 --batch 7"]
    state.write_text("7|CANCELLED|N/A|N/A|node1|1|0|None|\n")
    assert stopped(run) == 0
    assert "job 7 was cancelled" in capsys.readouterr().err


def write_tool(path, script):
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
