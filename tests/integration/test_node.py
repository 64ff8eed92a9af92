"""The program that `launch` runs on each machine, over pipes instead of ssh."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from roberta_dist import __version__
from roberta_dist.launcher.node import Start
from roberta_dist.launcher.survey import Question, Survey
from roberta_dist.launcher.wire import decode, encode

pytestmark = pytest.mark.world
DRIVER = Path(__file__).with_name("node_driver.py")


class Node:
    def __init__(self, *program: str, **environ: str) -> None:
        program = program or ("-m", "roberta_dist.launcher.node")
        self.process = subprocess.Popen(
            [sys.executable, "-u", *program],
            env=os.environ | environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def send(self, **message) -> None:
        self.process.stdin.write(encode(message))
        self.process.stdin.flush()

    def answer(self):
        return decode(self.process.stdout.readline())

    def look(self, token_file: Path, port: int | None, needed=()) -> Survey:
        question = Question(str(token_file), list(needed), port, {})
        self.send(do="look", version=__version__, question=asdict(question))
        return Survey(**self.answer()["survey"])

    def close(self) -> int:
        self.process.stdin.close()
        return self.process.wait(15)


@pytest.fixture
def node():
    made = []

    def start(*program: str, **environ: str) -> Node:
        made.append(Node(*program, **environ))
        return made[-1]

    yield start
    for one in made:
        one.process.kill()
        one.process.wait()
        one.process.stdout.close()
        one.process.stdin.close()


@pytest.fixture
def token(tmp_path):
    path = tmp_path / "token"
    path.write_text("abc")
    return path


def test_it_tells_what_it_finds_and_holds_the_port(node, token, tmp_path):
    one = node(SSH_CONNECTION="10.0.0.9 4000 10.0.0.1 22", DS_ACCELERATOR="cpu")
    survey = one.look(token, 0, [str(token), str(tmp_path / "corpus")])
    assert (survey.token, survey.missing) == ("abc", [str(tmp_path / "corpus")])
    assert (survey.client, survey.server) == ("10.0.0.9", "10.0.0.1")
    assert survey.devices == [] and survey.cores == len(os.sched_getaffinity(0))
    assert survey.libraries["torch"] and survey.libraries["deepspeed"]
    assert abs(survey.clock - time.time()) < 5
    # others reach the port, nobody else gets it
    other = node()
    other.send(do="reach", address="127.0.0.1", port=survey.port, timeout_s=5)
    assert other.answer() == {"refused": None}
    assert other.look(token, survey.port).port is None
    assert one.close() == 0
    other.send(do="reach", address="127.0.0.1", port=survey.port, timeout_s=5)
    assert "refused" in other.answer()["refused"].lower()
    assert other.close() == 0


def test_a_port_left_in_time_wait_is_free(node, token):
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            listener.accept()[0].close()  # this side goes to TIME_WAIT
    assert node().look(token, port).port == port


def test_another_version_is_told_and_not_guessed_at(node):
    one = node()
    one.send(do="look", version="9.9", question={"unheard": "of"})
    assert one.answer() == {"survey": {"version": __version__}}


STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "100"])
with open(sys.argv[1] + ".tmp", "w") as told:
    told.write(f"{os.getpid()} {child.pid} {os.environ['SECRET']}")
os.rename(sys.argv[1] + ".tmp", sys.argv[1] + ".pid")
time.sleep(100)
"""
"""A worker that ignores the polite signal."""


@pytest.mark.parametrize("how", ["end of input", "SIGTERM", "told", "silence"])
def test_workers_end_with_it(node, tmp_path, how):
    worker, config = tmp_path / "worker.py", tmp_path / "config.yaml"
    worker.write_text(STUBBORN)
    silence_s = "8" if how == "silence" else "60"
    one = node(str(DRIVER), str(worker), silence_s, DS_ACCELERATOR="cpu")
    start = Start(
        nodes={"a": [0]}, node_rank=0, master_addr="127.0.0.1", master_port=1, run_dir=str(tmp_path),
        config=str(config), attempt="attempt_000", threads=1, bind_cores=False, interface=None,
        environment={"SECRET": "hunter2"},
    )  # fmt: skip
    one.send(do="start", start=asdict(start))
    pids, secret = wait_for_worker(Path(f"{config}.pid"), one.process)
    assert secret == "hunter2"
    began = time.monotonic()
    if how == "end of input":
        one.process.stdin.close()
    elif how == "SIGTERM":
        one.process.send_signal(signal.SIGTERM)
    elif how == "told":
        one.send(do="end", grace_s=0.5)
    assert "exit" in one.answer()
    assert one.process.wait(10) == 0 and time.monotonic() - began < 20
    assert not any(map(alive, pids))


def wait_for_worker(pid_file: Path, node: subprocess.Popen[bytes]) -> tuple[list[int], str]:
    deadline = time.monotonic() + 60
    while not pid_file.is_file():
        assert time.monotonic() < deadline and node.poll() is None
        time.sleep(0.1)
    *pids, secret = pid_file.read_text().split()
    return [int(pid) for pid in pids], secret


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
