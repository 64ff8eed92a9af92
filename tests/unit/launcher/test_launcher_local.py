from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from roberta_dist.config.cluster import ClusterConfig
from roberta_dist.config.data import DataConfig
from roberta_dist.config.load import load_yaml
from roberta_dist.config.optim import ScheduleConfig
from roberta_dist.config.roots import LaunchConfig, PretrainConfig
from roberta_dist.errors import ConfigError, LaunchError, StorageError
from roberta_dist.launcher import local
from roberta_dist.launcher.attempts import Ended
from roberta_dist.launcher.launch import launch
from roberta_dist.launcher.processes import ProcessGroup
from roberta_dist.launcher.start import with_absolute_paths
from roberta_dist.runtime.rundir import RunPaths

pytestmark = pytest.mark.unit


@pytest.fixture
def config(tmp_path):
    corpus = tmp_path / "corpus"
    (corpus / "train").mkdir(parents=True)
    (corpus / "train" / "manifest.json").write_text("{}")
    return LaunchConfig(
        run_dir=str(tmp_path / "run"),
        data=DataConfig(path=str(corpus)),
        schedule=ScheduleConfig(max_steps=10, warmup_steps=1),
        cluster=ClusterConfig(workers_per_node=2, threads_per_worker=3, master_port=5, restarts=0),
    )


def ended(code=0, interrupted=False):
    return Ended(f"says {code}", code == 0, interrupted)


def world_of(command):
    word = next(word for word in command if word.startswith("--world_info="))
    return json.loads(base64.urlsafe_b64decode(word.partition("=")[2]))


def leave(path, step=10, reason="max_steps"):
    path.write_text(json.dumps({"step": step, "reason": reason}))


def test_launch_writes_the_configuration_and_starts_the_workers(config, monkeypatch, tmp_path):
    seen = []

    def run_group(command, environ, told):
        seen.append((command, environ))
        leave(RunPaths(Path(config.run_dir)).done)
        return ended()

    monkeypatch.setattr(local, "run_group", run_group)
    monkeypatch.chdir(tmp_path)
    relative = replace(config, run_dir="run", data=DataConfig(path="corpus"))
    assert launch(relative) == 0
    ((command, environ),) = seen
    written = tmp_path / "run" / "logs" / "attempt_000" / "config.yaml"
    assert command[-1] == str(written) and "--master_port=5" in command
    assert environ["OMP_NUM_THREADS"] == "3"
    assert load_yaml(PretrainConfig, written) == config.run
    assert load_yaml(PretrainConfig, tmp_path / "run" / "config.yaml") == config.run
    # done: nothing is started again
    assert launch(relative) == 0 and len(seen) == 1


def test_a_refused_attempt_leaves_the_runs_configuration_alone(config, monkeypatch):
    monkeypatch.setattr(local, "run_group", lambda command, environ, told: ended(1))
    with pytest.raises(LaunchError):
        launch(config)
    other = replace(config, schedule=ScheduleConfig(max_steps=99, warmup_steps=1))
    with pytest.raises(LaunchError):
        launch(other)
    run_dir = Path(config.run_dir)
    assert load_yaml(PretrainConfig, run_dir / "config.yaml") == config.run
    assert load_yaml(PretrainConfig, run_dir / "logs" / "attempt_001" / "config.yaml") == other.run


def test_a_requeue_of_the_last_attempt_does_not_speak_for_this_one(config, monkeypatch):
    paths = RunPaths(Path(config.run_dir))
    paths.root.mkdir()
    leave(paths.requeue, 3, "signal")
    monkeypatch.setattr(local, "run_group", lambda command, environ, told: ended(1))
    with pytest.raises(LaunchError):
        launch(config)


def test_no_corpus_no_worker(config, tmp_path):
    with pytest.raises(ConfigError, match="elsewhere"):
        launch(replace(config, data=DataConfig(path=str(tmp_path / "elsewhere"))))
    assert not Path(config.run_dir).exists()


def test_a_run_folder_that_cannot_be_made(config, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file"):
        launch(replace(config, run_dir=str(tmp_path / "file" / "run")))


@pytest.mark.parametrize("path", ["s3://bucket/mine", "https://host/mine", "pipe:cat /mine/{}"])
def test_a_remote_corpus_keeps_its_path(config, path):
    data = DataConfig(path=path, corpora={"far": path, "near": "corpora/mine"})
    made = with_absolute_paths(replace(config, run_dir="run", data=data))
    assert made.data.path == made.data.corpora["far"] == path
    assert Path(made.run_dir).is_absolute() and Path(made.data.corpora["near"]).is_absolute()


def test_every_corpus_of_a_mixture_is_looked_at(config):
    there = config.data.path
    data = DataConfig(path="/none", corpora={"there": there, "gone": "/gone"})
    with pytest.raises(ConfigError, match=r"data\.path=/gone: no prepared corpus there"):
        launch(replace(config, data=data))


def test_a_secret_in_a_path_is_refused_before_it_is_written(config):
    data = DataConfig(path="https://me:hunter2@host/mine")
    with pytest.raises(ConfigError, match="carries a user name") as caught:
        launch(replace(config, data=data))
    assert "hunter2" not in str(caught.value) and not Path(config.run_dir).exists()


def test_a_world_that_breaks_is_started_again_until_it_stands_still(config, monkeypatch):
    """Smaller each time where that is asked for; never after an interruption or a refusal."""
    cluster = replace(config.cluster, restarts=1, restart_delay_s=0, shrink=True)
    paths, worlds = RunPaths(Path(config.run_dir)), []

    def run_group(command, environ, told):
        worlds.append(len(world_of(command)["localhost"]))
        if len(worlds) < 3:  # each of them saves once
            folder = paths.checkpoints / f"step_{len(worlds):08d}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "COMPLETE").touch()
        return ended(1)

    monkeypatch.setattr(local, "find_devices", lambda environ: [])
    monkeypatch.setattr(local, "run_group", run_group)
    with pytest.raises(LaunchError):
        launch(replace(config, cluster=cluster))
    assert worlds == [2, 1, 1]
    worlds.clear()
    monkeypatch.setattr(local, "run_group", lambda *given: run_group(*given) and ended(1, True))
    assert launch(replace(config, cluster=cluster)) == 130
    assert len(worlds) == 1


def test_a_dry_run_says_all_and_starts_nothing(config, monkeypatch, capsys):
    monkeypatch.setattr(local, "find_devices", lambda environ: [])
    cluster = replace(config.cluster, interface="eth7", environment={"NCCL_DEBUG": "a b"})
    assert launch(replace(config, dry_run=True, cluster=cluster)) == 0
    told = capsys.readouterr().out
    assert told.startswith("this machine: 2 worker(s)\n")
    assert "  export NCCL_DEBUG='a b'\n" in told and "  export GLOO_SOCKET_IFNAME=eth7\n" in told
    assert "  export OMP_NUM_THREADS=3\n" in told
    assert f"{config.run_dir}/logs/attempt_NNN/config.yaml" in told.splitlines()[-1]
    assert not Path(config.run_dir).exists()


def test_binding_cores_needs_numactl(config, monkeypatch, tmp_path):
    cluster = replace(config.cluster, bind_cores=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="numactl"):
        launch(replace(config, cluster=cluster))
    assert not Path(config.run_dir).exists()


def test_nothing_is_started_again_after_stop(config, monkeypatch):
    """Neither after an attempt, nor where STOP comes while the next one is waited for."""
    paths, started = RunPaths(Path(config.run_dir)), []

    def run_group(command, environ, told):
        started.append(command)
        if len(started) == 1:
            paths.stop.touch()
        return ended(1)

    monkeypatch.setattr(local, "run_group", run_group)
    again = replace(config, cluster=replace(config.cluster, restarts=5, restart_delay_s=60))
    with pytest.raises(LaunchError):
        launch(again)
    assert len(started) == 1
    assert (paths.logs / "attempt_000" / "exit_code").read_text() == "6\n"
    threading.Timer(1.5, paths.stop.touch).start()  # `launch` takes the old one away first
    assert launch(again) == 130
    assert len(started) == 2
    # asked for between two attempts: `status` and `stop` say so, whatever ended the last
    assert (paths.logs / "attempt_001" / "exit_code").read_text() == "130\n"


def test_a_damaged_checkpoint_that_is_put_aside_is_no_progress(config, monkeypatch):
    paths, started = RunPaths(Path(config.run_dir)), []
    folder = paths.checkpoints / "step_00000005"

    def run_group(command, environ, told):
        started.append(command)
        if len(started) == 1:
            folder.mkdir(parents=True)
            (folder / "COMPLETE").touch()
        elif folder.exists():
            folder.rename(paths.checkpoints / "damaged_step_00000005")
        return ended(1)

    monkeypatch.setattr(local, "run_group", run_group)
    with pytest.raises(LaunchError):
        launch(replace(config, cluster=replace(config.cluster, restarts=1, restart_delay_s=0)))
    assert len(started) == 2


def test_a_run_that_goes_on_is_not_launched_again(config, monkeypatch):
    monkeypatch.setattr(local, "run_group", lambda *given: pytest.fail("started"))
    paths = RunPaths(Path(config.run_dir))
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            for launcher in (other.pid, 4_999_999):  # the newest line need not be the living one
                line = {
                    "time": time.time(),
                    "kind": "local",
                    "host": socket.gethostname(),
                    "pid": launcher,
                }
                paths.root.mkdir(exist_ok=True)
                with open(paths.jobs, "a") as jobs:
                    jobs.write(json.dumps(line) + "\n")
            with pytest.raises(
                ConfigError, match=f"a launch of this run goes on, process {other.pid}"
            ):
                launch(config)
            assert launch(replace(config, dry_run=True)) == 0
        finally:
            other.kill()
    with open(paths.jobs, "a") as jobs:
        jobs.write('{"time": 1')  # a kill left half a line
    monkeypatch.setattr(local, "run_group", lambda *given: ended(1))
    with pytest.raises(LaunchError):
        launch(config)


def test_what_was_asked_for_by_name_wins(config, monkeypatch):
    seen = []
    monkeypatch.setattr(
        local, "run_group", lambda command, environ, told: seen.append(environ) or ended(1)
    )
    asked = {"OMP_NUM_THREADS": "7", "TORCH_EXTENSIONS_DIR": "/mine", "DS_ACCELERATOR": "cpu"}
    monkeypatch.setattr(
        local, "find_devices", lambda environ: [0] if environ.get("DS_ACCELERATOR") != "cpu" else []
    )
    with pytest.raises(LaunchError):
        launch(replace(config, cluster=replace(config.cluster, environment=asked)))
    assert {name: seen[0][name] for name in asked} == asked


def test_a_trial_that_was_interrupted_did_not_go_well(config, monkeypatch):
    monkeypatch.setattr(local, "run_group", lambda *given: ended(0, interrupted=True))
    assert launch(replace(config, train=replace(config.train, dry_run=True))) == 130


def test_the_launchers_exit_code_outlives_its_end():
    group = ProcessGroup(["sleep", "60"], os.environ)
    assert group.end(10.0) == 1
    assert group.leader.returncode == -15 and not group.clean
    stubborn = ProcessGroup(
        ["bash", "-c", "trap '' TERM; echo; sleep 60; sleep 60"],
        os.environ,
        output=subprocess.DEVNULL,
    )
    time.sleep(0.3)
    began = time.monotonic()
    stubborn.end(0.5)
    assert stubborn.leader.returncode == -9 and time.monotonic() - began < 5


def test_what_is_to_be_prepared_is_composed_before_and_shown(config, capsys):
    with pytest.raises(ConfigError, match="prepare"):
        launch(replace(config, dry_run=True, prepare_first=["corpus=nonsense"]))
    words = ["corpus=text", "corpus.paths=[/a b]", "prepare.tasks=32"]
    assert launch(replace(config, dry_run=True, prepare_first=words)) == 0
    shown = capsys.readouterr().out.splitlines()[0]
    assert shown.startswith("first: roberta-dist prepare corpus=text 'corpus.paths=[/a b]' output=")
    assert "prepare.tasks" not in shown
