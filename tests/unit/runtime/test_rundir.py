"""Attempts get folders of their own, and all ranks of one find the same."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from roberta_dist.errors import StorageError
from roberta_dist.runtime.rundir import (
    ATTEMPT_VARIABLE,
    RunPaths,
    current_attempt,
    is_done,
    next_attempt,
)
from roberta_dist.runtime.world import World

pytestmark = pytest.mark.unit


@pytest.fixture
def paths(tmp_path, monkeypatch):
    monkeypatch.delenv(ATTEMPT_VARIABLE, raising=False)
    return RunPaths(tmp_path / "run")


def test_attempts_are_numbered_after_the_last(paths):
    assert [next_attempt(paths).name for _ in range(2)] == ["attempt_000", "attempt_001"]
    (paths.logs / "attempt_041").mkdir()
    (paths.logs / "attempt_of_mine").mkdir()
    assert next_attempt(paths) == paths.logs / "attempt_042"


def test_two_starts_at_once_get_two_folders(paths):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: next_attempt(paths), range(40)))
    assert len(set(folders)) == 40 and all(folder.is_dir() for folder in folders)


def test_ranks_follow_the_launcher(paths, monkeypatch):
    monkeypatch.setenv(ATTEMPT_VARIABLE, "attempt_007")
    ranks = [current_attempt(paths, World(rank, 3)) for rank in range(3)]
    assert ranks == [paths.logs / "attempt_007"] * 3


def test_ranks_of_another_launcher_share_their_port(paths, monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "29511")
    ranks = {current_attempt(paths, World(rank, 2)) for rank in range(2)}
    assert ranks == {paths.logs / "port_29511"}


def test_a_process_alone_takes_the_next_number(paths):
    assert current_attempt(paths, World()).name == "attempt_000"
    assert current_attempt(paths, World()).name == "attempt_001"


@pytest.mark.parametrize("attempt", ["attempt_000", None])
def test_a_run_folder_that_cannot_be_written_is_named(paths, monkeypatch, attempt):
    if attempt:
        monkeypatch.setenv(ATTEMPT_VARIABLE, attempt)
    paths.root.write_text("a file in the way")
    with pytest.raises(StorageError, match=r"run/logs.*cannot be written"):
        current_attempt(paths, World())


@pytest.mark.parametrize(
    ("done", "max_steps", "wanted"),
    [
        (None, 10, False),
        ('{"step": 10, "reason": "max_steps"}', 10, True),
        ('{"step": 10, "reason": "max_steps"}', 20, False),
        ('{"step": 5, "reason": "early_stop"}', 10, True),
    ],
)
def test_done_holds_for_as_many_steps_as_are_asked_for(paths, done, max_steps, wanted):
    paths.root.mkdir()
    if done:
        paths.done.write_text(done)
    assert is_done(paths, max_steps) is wanted
