"""W&B keeps to this machine unless asked, goes on under one id, and never stops a run.

The whole process tree is watched (wandb_support).
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
from wandb_support import KEY, can_trace, read_wandb, run_watched

from roberta_dist.config.watch import TrackConfig, WandbMode
from roberta_dist.track.wandb_sink import open_wandb

pytestmark = pytest.mark.unit

OFFLINE_RUN = """
import atexit

from roberta_dist.config.watch import TrackConfig
from roberta_dist.track.wandb_sink import open_wandb

[sink] = open_wandb(TrackConfig(), Path(sys.argv[1]), {"optim.lr": 1e-3})
sink.log(1, {"loss": 1.0})
atexit.register(sink.close)
"""
NAME_OUTSIDE = "import socket; s = socket.socket(2, 2); s.connect(('192.0.2.1', 9))"
"""A datagram socket that is connected has sent nothing yet."""
CHILD_NAMES_OUTSIDE = f"""
import subprocess
code = "{NAME_OUTSIDE}; print(flush=True); input()"
child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
"""


@pytest.fixture(scope="module")
def offline_run(tmp_path_factory):
    """The run folder of two attempts, and what each asked for outside."""
    folder = tmp_path_factory.mktemp("wandb")
    run_dir = folder / "private-corpus-run"
    run_dir.mkdir()
    traced = can_trace()
    seen = [run_watched(run_dir, folder, OFFLINE_RUN, traced) for _ in range(2)]
    return run_dir, seen


@pytest.mark.parametrize("traced", [True, False], ids=["traced", "listed"])
@pytest.mark.parametrize("what", [NAME_OUTSIDE, CHILD_NAMES_OUTSIDE], ids=["itself", "child"])
def test_the_watch_sees_what_it_should(tmp_path, what, traced):
    if traced and not can_trace():
        pytest.skip("strace may not be used here")
    seen = run_watched(tmp_path, tmp_path, what, traced)
    assert seen and all("192.0.2.1" in line for line in seen)


def test_offline_asks_nobody_outside_even_with_a_key(offline_run):
    _, seen = offline_run
    assert seen == [[], []]


def test_a_resume_goes_on_under_the_same_id(offline_run):
    run_dir, _ = offline_run
    run_id = (run_dir / "wandb" / "run_id").read_text()
    assert {path.stem for path in run_dir.rglob("*.wandb")} == {f"run-{run_id}"}


def test_nothing_about_the_machine_the_code_or_the_key_is_kept(offline_run):
    run_dir, _ = offline_run
    for path in run_dir.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert KEY.encode() not in content, path
            if path.suffix == ".wandb":
                assert os.uname().release.encode() not in content, path
                assert str(run_dir.parent).encode() not in content, path
                assert b"0.001" in content, path
                hosts = [record.run.host for record in read_wandb(path) if record.HasField("run")]
                assert hosts == [""], path
    names = {path.name for path in run_dir.rglob("*") if path.is_file()}
    unwanted = {"wandb-metadata.json", "output.log", "diff.patch", "requirements.txt"}
    assert not names & unwanted


def test_disabled_does_not_even_import_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert open_wandb(TrackConfig(wandb=WandbMode.disabled), tmp_path, {}) == []
    assert list(tmp_path.iterdir()) == []


def test_a_wandb_that_cannot_start_is_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with caplog.at_level(logging.WARNING, "roberta_dist.track"):
        assert open_wandb(TrackConfig(), tmp_path, {}) == []
    assert "W&B cannot start offline" in caplog.text


ONLINE_WITHOUT_A_SERVER = """
import sys
from pathlib import Path

from roberta_dist.config.watch import TrackConfig, WandbMode
from roberta_dist.track import wandb_sink

wandb_sink.INIT_TIMEOUT_S = 2.0
online = TrackConfig(wandb=WandbMode.online)
[sink] = wandb_sink.open_wandb(online, Path(sys.argv[1]), {})
sink.log(1, {"loss": 1.0})
sink.close()
"""


def test_online_without_a_server_goes_on_offline(tmp_path):
    nobody = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": KEY}
    done = subprocess.run(
        [sys.executable, "-c", ONLINE_WITHOUT_A_SERVER, str(tmp_path)],
        env=os.environ | nobody,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "W&B cannot start online" in done.stderr
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
