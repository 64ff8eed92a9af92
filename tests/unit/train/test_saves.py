"""When a save is due, and which checkpoints it leaves."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from roberta_dist.config.load import compose
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.config.train import CheckpointConfig
from roberta_dist.engine.saver import Outcome
from roberta_dist.errors import StorageError
from roberta_dist.runtime.rundir import complete_steps
from roberta_dist.train import saves as module
from roberta_dist.train.retention import delete_old
from roberta_dist.train.saves import RETRY_S, Saves
from roberta_dist.train.state import TrainState

pytestmark = pytest.mark.unit


class Saver:
    """Its next save ends as `outcome` says."""

    def __init__(self) -> None:
        self.error: StorageError | None = None

    def start(self, checkpoints: Any, step: int, *others: Any) -> None:
        self.step = step

    def finish(self, beat: Any) -> Outcome | None:
        step, self.step = getattr(self, "step", None), None
        return None if step is None else Outcome(step, self.error)


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def saves_of(saver: Saver, *words: str) -> Saves:
    config = compose("pretrain", PretrainConfig, ["checkpoint.asynchronous=false", *words])
    run = SimpleNamespace(
        config=config, stream=SimpleNamespace(fingerprint=lambda row: {}),
        engine=SimpleNamespace(saver=saver), world=SimpleNamespace(is_main=True),
        resume=SimpleNamespace(state=TrainState()),
    )  # fmt: skip
    tracker = SimpleNamespace(flush=lambda: None)
    return Saves(cast(Any, run), cast(Any, tracker), lambda: None)


def test_a_save_that_failed_is_tried_again_in_a_minute(clock):
    saver = Saver()
    saves = saves_of(saver)
    clock[0] += 10_000
    assert not saves.minutes_passed()
    saver.error = StorageError("full")
    saves.save(TrainState(step=5), required=False)
    assert saves.failures == 1 and saves.saved_step == 0 and not saves.minutes_passed()
    clock[0] += RETRY_S
    assert saves.minutes_passed()
    saves.save(TrainState(step=6), required=False)
    assert saves.failures == 2 and not saves.minutes_passed()
    clock[0] += RETRY_S
    saver.error = None
    saves.save(TrainState(step=7), required=False)
    clock[0] += 10_000
    assert saves.saved_step == 7 and not saves.minutes_passed()


def test_minutes_ask_for_a_save(clock):
    saves = saves_of(Saver(), "checkpoint.every_minutes=5")
    clock[0] += 299
    assert not saves.minutes_passed()
    clock[0] += 1
    assert saves.minutes_passed()


@pytest.mark.parametrize("saved", [True, False])
def test_the_best_that_is_there_stays(tmp_path, saved):
    """The save of a better one may have failed."""
    for step, best in ((10, 10), (20, 10), (30, 10), *([(40, 40)] if saved else []), (50, 40)):
        folder = tmp_path / f"step_{step:08d}"
        folder.mkdir()
        (folder / "COMPLETE").touch()
        (folder / "train_state.json").write_text(json.dumps({"best_step": best}))
    delete_old(tmp_path, CheckpointConfig(keep_last=1, keep_best=True), best_step=40)
    assert complete_steps(tmp_path) == ([40, 50] if saved else [10, 50])
    assert not list(tmp_path.glob(".*"))
