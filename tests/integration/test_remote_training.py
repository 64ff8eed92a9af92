"""A run from S3, from a web server and through a command is the run from disk, bit for bit."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import run_support
from serving import AWS_ENVIRONMENT, ServerProcess

STEPS = 20
SHORT = [f"schedule.max_steps={STEPS}", "evaluate.every_steps=10", "checkpoint.every_steps=20"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_support.prepare_corpus(tmp_path_factory.mktemp("remote") / "mine")


@pytest.fixture(scope="module")
def from_disk(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("disk") / "run"
    run_support.finish(run_support.write_config(run_dir, corpus, *SHORT), 1)
    return run_dir


def remote_config(run_dir: Path, data_path: str) -> Path:
    return run_support.write_config(run_dir, Path(run_dir), *SHORT, f'data.path="{data_path}"')


def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, endpoint: str) -> None:
    for name, value in AWS_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def same_run(run_dir: Path, expected: Path) -> None:
    ours = run_support.deterministic(run_dir)
    assert ours == run_support.deterministic(expected)
    assert [line["step"] for line in ours if "loss" in line] == list(range(1, STEPS + 1))


@pytest.mark.world
@pytest.mark.parametrize("kind", ["s3", "http"])
def test_a_server_killed_and_restarted_mid_run_changes_no_metric(
    corpus, from_disk, tmp_path, monkeypatch, kind
):
    with ServerProcess(kind, corpus, tmp_path / "server.log") as server:
        surroundings(monkeypatch, tmp_path, server.endpoint)
        config = remote_config(tmp_path / "run", server.data_path)
        ranks = run_support.start(config, 1)
        try:
            run_support.wait_for_step(tmp_path / "run", ranks, 3)
            server.kill()
            time.sleep(0.5)
            server.start()
            codes = ranks.wait()
        finally:
            ranks.signal(9)
    assert codes == [0], ranks.output()[-4000:]
    assert "next try in" in ranks.output()  # the server was missed
    same_run(tmp_path / "run", from_disk)


@pytest.mark.world
def test_a_run_through_a_command(corpus, from_disk, tmp_path, monkeypatch):
    surroundings(monkeypatch, tmp_path, "")
    run_support.finish(remote_config(tmp_path / "run", f"pipe:cat {corpus}/{{}}"), 1)
    same_run(tmp_path / "run", from_disk)
    assert (tmp_path / "cache" / "roberta_dist" / "content").is_dir()
