"""`launch cluster=hostfile` over two real sshd on this machine: each address a "host"."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from run_support import TINY, deterministic, free_port, metrics, same_weights
from sshd_support import MISSING, REASON, SshHosts

pytestmark = [pytest.mark.world, pytest.mark.skipif(bool(MISSING), reason=REASON)]
SECRET = "hunter2-not-in-any-file"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshHosts]:
    made = SshHosts(tmp_path_factory.mktemp("ssh") / "own")
    yield made
    made.stop()


class Launch:
    """`launch` over the hosts in its own process."""

    def __init__(self, hosts: SshHosts, run_dir: Path, corpus: Path, *overrides: str) -> None:
        self.run_dir = run_dir
        self.log = run_dir.with_name(f"{run_dir.name}.out")
        command = [
            sys.executable, "-m", "roberta_dist.cli", "launch", f'run_dir="{run_dir}"',
            f"data.path={corpus}", *TINY, *hosts.overrides(), "cluster.restarts=0",
            "cluster.threads_per_worker=1", "cluster.hosts.forward=[A_SECRET]", *overrides,
        ]  # fmt: skip
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command, env=os.environ | {"A_SECRET": SECRET}, stderr=log, stdout=log
            )

    def finish(self, timeout: float = 180) -> tuple[int, str]:
        try:
            return self.process.wait(timeout), self.log.read_text()
        finally:
            self.process.kill()

    def wait_for_step(self, step: int, timeout: float = 120) -> None:
        deadline = time.monotonic() + timeout
        while not (found := metrics(self.run_dir)) or found[-1]["step"] < step:
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def there(self) -> list[psutil.Process]:
        """Live processes on the "hosts" that belong to this run."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = any(str(self.run_dir) in word for word in process.cmdline())
                if ours and process.pid != self.process.pid and process.is_running():
                    found += [process] * (process.status() != psutil.STATUS_ZOMBIE)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found


def test_two_hosts_stop_go_on_and_equal_two_ranks_of_one(hosts, tmp_path, corpus, uninterrupted):
    run_dir = tmp_path / "a run"
    first = Launch(hosts, run_dir, corpus)
    first.wait_for_step(12)
    workers = [p for p in first.there() if "pretrain.py" in " ".join(p.cmdline()[1:3])]
    environs = [worker.environ() for worker in workers]
    assert sorted(e["RANK"] for e in environs) == ["0", "1"]
    assert [(e["LOCAL_RANK"], e["WORLD_SIZE"], e["A_SECRET"]) for e in environs] == [
        ("0", "2", SECRET)
    ] * 2
    first.process.send_signal(signal.SIGINT)
    code, told = first.finish()
    assert code == 0 and "goes on from there" in told, told
    assert (run_dir / "REQUEUE").is_file() and not first.there()
    code, told = Launch(hosts, run_dir, corpus).finish()
    assert code == 0 and (run_dir / "DONE").is_file(), told
    assert deterministic(run_dir) == deterministic(uninterrupted)
    last = "checkpoints/step_00000040"
    assert same_weights(run_dir / last, uninterrupted / last)
    for path in run_dir.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    assert not list(run_dir.glob(".*"))


def test_killing_the_launcher_leaves_no_worker(hosts, tmp_path, corpus):
    run = Launch(hosts, tmp_path / "run", corpus, "schedule.max_steps=100000")
    run.wait_for_step(2)
    assert len(run.there()) >= 4
    run.process.kill()
    run.process.wait()
    deadline = time.monotonic() + 15
    while run.there():
        assert time.monotonic() < deadline, run.there()
        time.sleep(0.1)


def refused(hosts, tmp_path, corpus, limit_s, *overrides) -> str:
    """The error of a launch that starts nothing, within its time limit."""
    began = time.monotonic()
    run = Launch(hosts, tmp_path / "run", corpus, *overrides)
    code, told = run.finish(limit_s)
    assert code == 6, told
    assert "nothing was started" in told and "remedy: " in told
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())
    print(f"{time.monotonic() - began:.1f} s: {told}")
    return told


def test_a_host_that_cannot_be_reached_and_one_with_too_few_slots(hosts, tmp_path, corpus):
    """Both in one message."""
    cores = len(os.sched_getaffinity(0))
    config = tmp_path / "ssh_config"
    silent = f"Host gone\n  HostName 127.0.1.9\n  Port {free_port()}\n"
    config.write_text(silent + hosts.config.read_text())
    hostfile = tmp_path / "hostfile"
    hostfile.write_text(f"gone slots=1\nnode1 slots={cores + 1}\nnode2 slots=1\n")
    told = refused(
        hosts, tmp_path, corpus, 40, f"cluster.hosts.file={hostfile}",
        f"cluster.hosts.ssh_options=[-F,{config}]",
    )  # fmt: skip
    assert "2 machine(s) cannot take part" in told
    assert "gone: ssh cannot reach it: ssh: connect to host 127.0.1.9" in told
    assert f"node1: {cores + 1} workers are asked for, and it has no accelerator" in told
    assert "exclude=gone" in told and "node2:" not in told


def test_a_host_that_does_not_answer(hosts, tmp_path, corpus):
    """It takes the connection and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.1.9", 0))
        listener.listen()
        config, hostfile = tmp_path / "ssh_config", tmp_path / "hostfile"
        config.write_text(f"Host mute\n  HostName 127.0.1.9\n  Port {listener.getsockname()[1]}\n")
        hostfile.write_text("mute slots=1\n")
        told = refused(
            hosts, tmp_path, corpus, 25, f"cluster.hosts.file={hostfile}",
            f"cluster.hosts.ssh_options=[-F,{config}]", "cluster.hosts.connect_timeout_s=2",
        )  # fmt: skip
    assert "mute: ssh cannot reach it" in told


def test_a_busy_port(hosts, tmp_path, corpus):
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = listener.getsockname()[1]
        told = refused(hosts, tmp_path, corpus, 40, f"cluster.master_port={port}")
    assert f"node1: port {port} is taken there" in told and "cluster.master_port" in told


def test_another_interpreter(hosts, tmp_path, corpus):
    told = refused(hosts, tmp_path, corpus, 40, "cluster.hosts.python=/no/python")
    assert "node1: /no/python cannot be run there" in told and "node2: /no/python" in told


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives a host a file system of its own")
def test_a_run_folder_that_is_not_shared(tmp_path, corpus):
    """The second host has a file system of its own where the run folder is."""
    folder = tmp_path / "unshared"
    folder.mkdir()
    own = SshHosts(tmp_path / "ssh", hidden=folder)
    try:
        run_dir = folder / "run"
        run_dir.mkdir()
        run = Launch(own, run_dir, corpus)
        code, told = run.finish(40)
    finally:
        own.stop()
    assert code == 6, told
    assert f"node2: {run_dir} is not the folder that is seen here" in told and "share" in told
    assert "node1:" not in told and not list(run_dir.iterdir())
