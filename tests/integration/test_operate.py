"""status, logs and stop on real runs, in a folder whose name a shell would act on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from run_support import TINY, finish, metrics, start, wait_for_step, worker_of, write_config

from roberta_dist.launcher.workers import workers_of

pytestmark = pytest.mark.world
HOSTILE = "$(touch pwned) 'a\" b;`touch pwned`\nc"


def verb(name: str, *arguments: str, cwd: Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "roberta_dist.cli", name, *arguments]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False
    )


def state_of(run_dir: Path, cwd: Path) -> dict[str, object]:
    done = verb("status", f"run_dir={quoted(run_dir)}", "json=true", cwd=cwd)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def quoted(path: Path) -> str:
    """As Hydra's grammar wants it."""
    escaped = str(path).replace("'", r"\'")
    return f"'{escaped}'"


def wait_for(condition: Callable[[], object], timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_run_is_watched_stopped_and_goes_on(tmp_path, corpus):
    """`launch`, `status`, `logs`, `stop`, all of it in a folder with a hostile name."""
    here = tmp_path / HOSTILE
    here.mkdir()
    run_dir, data = here / HOSTILE, here / "c $(touch pwned)`'"
    data.symlink_to(corpus)
    where = f"run_dir={quoted(run_dir)}"
    command = [
        sys.executable, "-m", "roberta_dist.cli", "launch", where, f"data.path={quoted(data)}", *TINY,
        "schedule.max_steps=4000", "cluster.workers_per_node=2",
        f"track.wandb_name={quoted(Path(HOSTILE))}", f"track.wandb_project={quoted(Path(HOSTILE))}",
    ]  # fmt: skip
    log = open(tmp_path / "launch.log", "ab")  # noqa: SIM115
    launcher = subprocess.Popen(command, cwd=here, stdout=log, stderr=log)
    follower = subprocess.Popen(
        [sys.executable, "-m", "roberta_dist.cli", "logs", where, "follow=true"],
        cwd=here, stdout=open(tmp_path / "followed", "wb"), stderr=subprocess.DEVNULL,
    ) if False else None  # fmt: skip
    try:
        wait_for(lambda: launcher.poll() is None and len(metrics(run_dir)) > 15)
        with open(tmp_path / "followed", "wb") as out:
            follow = [sys.executable, "-m", "roberta_dist.cli", "logs", where, "follow=true"]
            follower = subprocess.Popen(follow, cwd=here, stdout=out, stderr=out)
        found = state_of(run_dir, here)
        assert found["state"] == "running" and found["detail"] == f"launcher {launcher.pid}"
        assert found["world_size"] == 2 and found["seconds_left"] > 0 and found["step"] >= 15
        assert found["checkpoint_step"] >= 10 and found["run_dir"] == str(run_dir)
        done = verb("stop", where, cwd=here)
        assert done.returncode == 0 and "stopped: on request at step" in done.stderr, done.stderr
        assert launcher.wait(60) == 0 and not workers_of(run_dir)
        step = json.loads((run_dir / "REQUEUE").read_text())["step"]
        assert (run_dir / "STOP").is_file()
        found = state_of(run_dir, here)
        assert found["state"] == "stopped" and found["checkpoint_step"] == step
        assert follower.wait(30) == 0
        followed = (tmp_path / "followed").read_text()
        assert followed.count("from step 0 (row 0)") == 1 and "held-out loss" in followed
        # the same command goes on, and ends
        command += [f"schedule.max_steps={step + 20}", "train.extend=true", "schedule.decay=constant"][:0]
        launcher = subprocess.Popen(command, cwd=here, stdout=log, stderr=log)
        wait_for(lambda: not (run_dir / "STOP").exists())
        wait_for(lambda: metrics(run_dir)[-1]["step"] > step)
        assert verb("logs", where, "lines=1", "rank=1", "attempt=1", cwd=here).returncode == 0
        done = verb("stop", where, "now=true", cwd=here)
        assert done.returncode == 0 and "at once; `launch` goes on from step" in done.stderr
        assert launcher.wait(60) == 130
    finally:
        for process in (launcher, follower):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
    assert not list(tmp_path.rglob("pwned")) and not Path("pwned").exists()


def test_workers_without_a_launcher_are_stopped_too(tmp_path, corpus):
    run_dir = tmp_path / HOSTILE
    config = write_config(run_dir, corpus, "schedule.max_steps=4000") if False else None
    run_dir.mkdir()
    config = write_config(tmp_path / "plain run", corpus, "schedule.max_steps=4000")
    ranks = start(config, 2, output=tmp_path)
    try:
        wait_for_step(config.parent, ranks, 12)
        assert worker_of(config.parent, 1).pid == ranks.processes[1].pid
        found = state_of(config.parent, tmp_path)
        assert (found["state"], found["kind"]) == ("running", "direct")
        done = verb("stop", "run_dir=plain run", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "SIGUSR1 to rank 0" in done.stderr and "stopped: on request" in done.stderr
        assert ranks.wait() == [0, 0], ranks.output()[-3000:]
    finally:
        ranks.signal(signal.SIGKILL)
    finish(write_config(config.parent, corpus, "schedule.max_steps=4000", "train.early_stop_patience=1"), 1, "x") if False else None
    assert os.path.exists(config.parent / "REQUEUE")
