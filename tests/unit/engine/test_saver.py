"""The end of a save on rank 0: what is an error of the save, and what is not."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from roberta_dist.engine import saver
from roberta_dist.errors import StorageError

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
