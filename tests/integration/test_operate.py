"""status, logs and stop on real runs, in a folder whose name a shell would act on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from run_support import TINY, metrics, start, wait_for_step, worker_of, write_config

from roberta_dist.launcher.workers import workers_of

pytestmark = pytest.mark.world
HOSTILE = "$(touch pwned) 'a\" b;`touch pwned`\nc"
LONG = "schedule.max_steps=4000"


def command(verb: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "roberta_dist.cli", verb, *arguments]


def run_verb(cwd: Path, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(verb, *arguments), cwd=cwd, capture_output=True, text=True, timeout=240, check=False
    )


def state_of(cwd: Path, where: str) -> dict[str, Any]:
    done = run_verb(cwd, "status", where, "json=true")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def quoted(value: object) -> str:
    """As Hydra's grammar wants it."""
    escaped = str(value).replace("'", r"\'")
    return f"'{escaped}'"


def wait_for(condition: Callable[[], object], timeout: float = 180) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def background(tmp_path):
    """Starts commands that write into a file; none of them outlives the test."""
    started = []

    def start_one(cwd, name, words):
        with open(tmp_path / name, "ab") as out:
            started.append(subprocess.Popen(words, cwd=cwd, stdout=out, stderr=out))
        return started[-1]

    yield start_one
    for process in started:
        process.kill()
        process.wait()


def test_a_run_is_watched_stopped_and_goes_on(tmp_path, corpus, background):
    here = tmp_path / HOSTILE
    here.mkdir()
    run_dir, data, name = here / HOSTILE, here / "corpus $(touch pwned)`'", quoted(HOSTILE)
    data.symlink_to(corpus)
    where = f"run_dir={quoted(run_dir)}"
    words = command(
        "launch", where, f"data.path={quoted(data)}", *TINY, LONG, "cluster.workers_per_node=2",
        "track.tensorboard=true", "track.wandb=offline", f"track.wandb_name={name}",
    )  # fmt: skip
    launcher = background(here, "launched", words)

    def reaches(step: int) -> bool:
        assert launcher.poll() is None, (tmp_path / "launched").read_text()[-3000:]
        return any(line["step"] >= step for line in metrics(run_dir))

    wait_for(lambda: reaches(15))
    follower = background(here, "followed", command("logs", where, "follow=true"))
    found = state_of(here, where)
    assert (found["state"], found["detail"]) == ("running", f"launcher {launcher.pid}")
    assert found["step"] >= 15 and found["checkpoint_step"] >= 10 and found["seconds_left"] > 0
    assert (found["run_dir"], found["world_size"]) == (str(run_dir), 2)

    done = run_verb(here, "stop", where)
    assert done.returncode == 0 and "stopped: on request at step" in done.stderr, done.stderr
    assert launcher.wait(60) == 0 and not workers_of(run_dir) and (run_dir / "STOP").is_file()
    step = json.loads((run_dir / "REQUEUE").read_text())["step"]
    found = state_of(here, where)
    assert (found["state"], found["checkpoint_step"]) == ("stopped", step)
    assert follower.wait(60) == 0
    followed = (tmp_path / "followed").read_text()
    assert followed.count("from step 0 (row 0)") == 1

    launcher = background(here, "launched", words)  # the same command goes on
    wait_for(lambda: reaches(step + 1))
    assert not (run_dir / "STOP").exists()
    shown = run_verb(here, "logs", where, "lines=0", "attempt=1")
    assert f"from step {step} (row {16 * step})" in shown.stdout
    done = run_verb(here, "stop", where, "now=true")
    assert done.returncode == 0 and "stopped: at once; `launch` goes on" in done.stderr
    assert launcher.wait(60) == 130 and not workers_of(run_dir)
    assert not list(tmp_path.rglob("pwned")) and not Path("pwned").exists()


def test_preparing_first_ends_with_its_launcher(tmp_path, background):
    run_dir = tmp_path / "run"
    words = command(
        "launch", f"run_dir={run_dir}", f"data.path={tmp_path}/made", *TINY, LONG,
        "prepare_first=['corpus=docstrings']",
    )  # fmt: skip

    def preparing() -> list[int]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if f"output={tmp_path}/made" in process.cmdline():
                    found.append(process.pid)
        return found

    launcher = background(tmp_path, "launched", words)
    wait_for(lambda: preparing() or launcher.poll() is not None)
    again = run_verb(tmp_path, *words[3:])
    assert again.returncode == 2 and f"process {launcher.pid}" in again.stderr, again.stderr
    done = run_verb(tmp_path, "stop", f"run_dir={run_dir}")
    assert done.returncode == 0 and "stopped: before its workers could save" in done.stderr, done
    assert launcher.wait(30) == 130 and not preparing()

    launcher = background(tmp_path, "launched", words)
    wait_for(lambda: preparing() or launcher.poll() is not None)
    launcher.kill()
    wait_for(lambda: not preparing(), timeout=15)


def test_workers_that_no_launcher_started(tmp_path, corpus):
    run_dir = tmp_path / "a run"
    ranks = start(write_config(run_dir, corpus, LONG), 2)
    try:
        wait_for_step(run_dir, ranks, 12)
        assert worker_of(run_dir, 1).pid == ranks.processes[1].pid
        found = state_of(tmp_path, "run_dir=a run")
        assert (found["state"], found["kind"]) == ("running", "direct")
        done = run_verb(tmp_path, "stop", "run_dir=a run")
        assert done.returncode == 0 and "SIGUSR1 to rank 0" in done.stderr, done.stderr
        assert ranks.wait() == [0, 0] and "stopped: on request at step" in done.stderr
    finally:
        ranks.signal(signal.SIGKILL)
