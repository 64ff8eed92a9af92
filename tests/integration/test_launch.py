"""The launcher against the real `deepspeed` launcher: exit codes, signals, nobody left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.world
DRIVER = Path(__file__).with_name("launch_driver.py")


class Launched:
    """A launch in its own process, and the processes that it started."""

    def __init__(self, folder: Path, mode: str) -> None:
        self.run_dir = folder / "a run"
        (folder / "corpus" / "train").mkdir(parents=True)
        (folder / "corpus" / "train" / "manifest.json").write_text("{}")
        overrides = [
            f'run_dir="{self.run_dir}"', f"data.path={folder}/corpus", "cluster.workers_per_node=2",
            "schedule.max_steps=10", "schedule.warmup_steps=1", "cluster.restarts=0",
        ]  # fmt: skip
        environ = os.environ | {"LAUNCH_TEST_MODE": mode, "LAUNCH_TEST_MARK": str(folder)}
        self.mark = str(folder)
        self.process = subprocess.Popen(
            [sys.executable, str(DRIVER), *overrides],
            env=environ,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def started(self) -> list[int]:
        """Worker process ids, once both run."""
        files = [self.run_dir / f"pid_{rank}" for rank in range(2)]
        assert wait_until(lambda: all(f.is_file() and f.read_text() for f in files), 60)
        return [int(f.read_text()) for f in files]

    def finish(self, timeout: float = 60) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=timeout)
        return self.process.returncode, errors

    def alive(self) -> list[psutil.Process]:
        """Every process below the launch, found by a variable that all of them inherit."""
        found = []
        for process in psutil.process_iter():
            try:
                marked = process.environ().get("LAUNCH_TEST_MARK") == self.mark
                if marked and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def deepspeed(self) -> psutil.Process:
        return next(p for p in self.alive() if "deepspeed.launcher.launch" in p.cmdline())


def wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.fixture
def start(tmp_path):
    launched = []

    def start_one(mode: str) -> Launched:
        launched.append(Launched(tmp_path, mode))
        return launched[-1]

    yield start_one
    for one in launched:
        for process in one.alive():
            process.kill()


def test_workers_get_their_world_and_done_means_0(start):
    run = start("done")
    code, errors = run.finish()
    assert code == 0, errors
    environ = [json.loads((run.run_dir / f"env_{r}.json").read_text()) for r in range(2)]
    assert [e["RANK"] for e in environ] == ["0", "1"]
    assert {e["WORLD_SIZE"] for e in environ} == {"2"}
    assert {e["ROBERTA_DIST_ATTEMPT"] for e in environ} == {"attempt_000"}
    assert (run.run_dir / "logs" / "attempt_000" / "config.yaml").is_file()
    assert not run.alive()
    # again: nothing to do, nothing is started
    before = time.monotonic()
    again = subprocess.run(run.process.args, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "already complete" in again.stderr
    assert time.monotonic() - before < 5
    assert not (run.run_dir / "logs" / "attempt_001").exists()


def test_the_code_of_a_failing_rank_comes_through(start):
    run = start("4")
    code, errors = run.finish()
    assert code == 4, errors
    assert "non-finite" in errors and "attempt_000" in errors
    assert not run.alive()


def test_ctrl_c_lets_the_workers_save(start):
    run = start("stop")
    run.started()
    run.process.send_signal(signal.SIGINT)
    code, errors = run.finish()
    assert code == 0, errors
    assert (run.run_dir / "saved_0").exists() and (run.run_dir / "saved_1").exists()
    assert "goes on from there" in errors
    assert not run.alive()


def test_a_second_ctrl_c_does_not_wait(start):
    run = start("hang")
    run.started()
    run.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    run.process.send_signal(signal.SIGINT)
    code, errors = run.finish(10)
    assert code == 130, errors
    assert not (run.run_dir / "saved_0").exists()
    assert not run.alive()


def test_killing_one_worker_ends_all(start):
    run = start("hang")
    os.kill(run.started()[1], signal.SIGKILL)
    code, errors = run.finish()
    assert code == 6, errors
    assert "rank_*.log" in errors
    assert not run.alive()


@pytest.mark.parametrize("victim", ["ours", "deepspeed"])
def test_killing_a_launcher_leaves_nobody(start, victim):
    run = start("hang")
    run.started()
    target = run.deepspeed().pid if victim == "deepspeed" else run.process.pid
    os.kill(target, signal.SIGKILL)
    run.finish()
    assert wait_until(lambda: not run.alive(), 15), run.alive()
