"""Workers in the real process table, and the launcher that a run folder names."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from run_folders import Folder

from roberta_dist.launcher.records import living_launcher, read_launches
from roberta_dist.launcher.workers import find_workers, given_config, workers_of

pytestmark = pytest.mark.unit

STANDS = """\
import os, time
if os.environ.get("FORK") and os.fork() == 0:
    time.sleep(100)
time.sleep(100)
"""


@pytest.mark.parametrize(
    ("command", "config"),
    [
        ("/v/bin/python -u /x/launch/pretrain.py runs/a/config.yaml", "runs/a/config.yaml"),
        ("python3.11 -m roberta_dist.train /r/logs/attempt_001/config.yaml", "/r/logs/attempt_001/config.yaml"),
        ("python -u -m roberta_dist.train r/config.yaml", "r/config.yaml"),
        ("python /v/bin/roberta-dist pretrain data.path=c run_dir=runs/a", "runs/a/config.yaml"),
        ("python -m roberta_dist.cli pretrain run_dir='runs/a'", "runs/a/config.yaml"),
        ("python /v/bin/roberta-dist pretrain data.path=c", None),
        ("python /v/bin/roberta-dist launch run_dir=runs/a", None),
        ("python -m deepspeed.launcher.runner --quiet pretrain.py r/config.yaml", None),
        ("srun python launch/pretrain.py r/config.yaml", None),
        ("tail -f launch/pretrain.py r/config.yaml", None),
        ("vi pretrain.py config.yaml", None),
        ("python pretrain.py", None),
    ],
)  # fmt: skip
def test_which_command_lines_are_workers(command, config):
    found = given_config(command.split())
    assert (None if found is None else str(found)) == config


def test_a_value_that_hydra_was_given_in_quotes():
    run_dir = r"""run_dir='a \'b\' $(x) "c"'"""
    found = given_config(["python", "/bin/roberta-dist", "pretrain", run_dir])
    assert str(found) == """a 'b' $(x) "c"/config.yaml"""


@pytest.fixture
def start(tmp_path):
    script = tmp_path / "pretrain.py"
    script.write_text(STANDS)
    started = []

    def start_one(config, rank, cwd=tmp_path, **environ):
        command = [sys.executable, "-u", str(script), str(config)]
        whole = os.environ | {"RANK": str(rank)} | environ
        started.append(subprocess.Popen(command, env=whole, cwd=cwd, start_new_session=True))
        return started[-1]

    yield start_one
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_workers_of_a_run(start, tmp_path):
    name = """$(touch x) 'a" b\n`c`"""
    run_dir, other = tmp_path / name, tmp_path / "logs"
    for folder in (run_dir / "logs" / "attempt_001", other):
        folder.mkdir(parents=True)
    first = start(f"{name}/config.yaml", 1)  # relative to where it was started
    second = start(run_dir / "logs" / "attempt_001" / "config.yaml", 0, FORK="1")
    (run_dir / "slurm" / "submit_000").mkdir(parents=True)
    start(run_dir / "slurm" / "submit_000" / "config.yaml", 2)
    third = start(other / "config.yaml", 0)
    wait_for(lambda: len(psutil.Process(second.pid).children()) == 1)
    wait_for(lambda: len(workers_of(run_dir)) == 3)
    found = {rank: process.pid for rank, process in workers_of(run_dir).items()}
    assert list(found.items())[:2] == [
        (0, second.pid),
        (1, first.pid),
    ]  # and not what rank 0 forked
    # a folder that is itself called logs is no attempt's
    assert [process.pid for process in workers_of(other).values()] == [third.pid]
    assert workers_of(tmp_path) == {}
    first.kill()
    wait_for(lambda: psutil.Process(first.pid).status() == psutil.STATUS_ZOMBIE)
    assert list(workers_of(run_dir)) == [0, 2]
    assert {first.pid} & {worker.process.pid for worker in find_workers()} == set()


def test_a_launcher_and_one_that_only_has_its_number(start, tmp_path):
    process = start("x", 0)
    folder = Folder(tmp_path / "run").launched(pid=process.pid, time=time.time())
    (launch,) = read_launches(folder.paths)
    assert living_launcher(launch).pid == process.pid
    folder.launched(pid=process.pid)  # it ended since, and the number was given again
    assert living_launcher(read_launches(folder.paths)[-1]) is None
    folder.launched(pid=process.pid, time=time.time(), host="elsewhere")
    assert living_launcher(read_launches(folder.paths)[-1]) is None
    process.kill()
    wait_for(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
    assert living_launcher(launch) is None
