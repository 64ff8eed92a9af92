"""The end of a save on rank 0: what is an error of the save, and what is not."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from roberta_dist.engine import saver
from roberta_dist.errors import StorageError
from roberta_dist.runtime.world import World

pytestmark = pytest.mark.unit


def under(folder: Path, then: Any) -> Any:
    snapshot = SimpleNamespace(shapes={})
    return cast(
        Any,
        SimpleNamespace(
            step=7, temporary=folder / "t", final=folder / "f", snapshot=snapshot, entries=[],
            train_state={}, config_yaml="", then=then,
        ),
    )  # fmt: skip


class Writing:
    """A thread that writes for a while."""

    def __init__(self, file: Path, seconds: float) -> None:
        self.file, self.end = file, time.monotonic() + seconds

    @property
    def done(self) -> bool:
        return time.monotonic() > self.end

    error = None

    def wait(self, timeout_s: float) -> None:
        time.sleep(timeout_s)
        with open(self.file, "ab") as handle:
            handle.write(b"more")

    def result(self) -> str:
        return "sum"


@pytest.mark.parametrize("stalls", [False, True])
def test_a_slow_disk_is_progress_and_one_that_stands_still_is_none(tmp_path, monkeypatch, stalls):
    monkeypatch.setattr(saver, "SLICE_S", 0.05)
    one = saver.Saver(None, World(), torch.device("cpu"))
    one._under = under(tmp_path, lambda: None)
    shard = tmp_path / "t" / saver.shard_name(0)
    shard.parent.mkdir(parents=True)
    written = Writing(tmp_path / "elsewhere" if stalls else shard, 0.5)
    (tmp_path / "elsewhere").touch()
    one._writing = cast(Any, written)
    monkeypatch.setattr(saver, "finish_checkpoint", lambda *arguments: None)
    beats: list[float] = []
    outcome = one.finish(lambda: beats.append(time.monotonic()))
    assert outcome is not None and outcome.error is None
    assert len(beats) == 0 if stalls else len(beats) >= 3


def refuse(*arguments: object) -> None:
    raise PermissionError("old checkpoints are not ours")


def test_what_comes_after_a_whole_checkpoint_does_not_undo_it(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(saver, "finish_checkpoint", lambda *arguments: None)
    with caplog.at_level(logging.WARNING):
        saver._finish_on_main(under(tmp_path, refuse), {})
    assert "step 7" in caplog.text and "not ours" in caplog.text


def test_a_checkpoint_that_cannot_be_finished_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(saver, "finish_checkpoint", refuse)
    with pytest.raises(StorageError, match="not ours"):
        saver._finish_on_main(under(tmp_path, lambda: None), {})
