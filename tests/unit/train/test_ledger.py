"""Every decision about a batch, from numbers alone; the journal outlives what a rollback takes back."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from roberta_dist.config.load import compose
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.engine.result import StepResult
from roberta_dist.errors import DataFault, NonFiniteError
from roberta_dist.optim.loss_scale import LossScale
from roberta_dist.train.journal import Journal, Reason, Skip, read_journal
from roberta_dist.train.ledger import Ledger, RollBack
from roberta_dist.train.spikes import seen, spike_score
from roberta_dist.train.state import TrainState, state_from_json

pytestmark = pytest.mark.unit
CALM = tuple(5.0 + 0.01 * (i % 7) for i in range(20))
ENTRY = Skip(12, 96, 104, Reason.rollback, "9.0", "1.0")


def result(loss=5.0, applied=True, grad_norm=1.0, masked=10):
    return StepResult(
        loss=loss, nsp_loss=math.nan, nsp_accuracy=math.nan, masked_tokens=masked, pairs=0, tokens=80,
        grad_norm=grad_norm, applied=applied, layers={}, compute_s=0.0, optimizer_s=0.0,
    )  # fmt: skip


def ledger(tmp_path, *overrides, entries=()):
    config = compose("pretrain", PretrainConfig, ["guard.spike_window=20", *overrides])
    journal = Journal(tmp_path / "skips.jsonl", entries, writes=True)
    return Ledger(config, journal), journal


def test_the_score_is_robust_and_one_sided():
    assert spike_score(9.0, CALM[:9], 20) == 0.0  # too few to judge
    assert spike_score(9.0, CALM, 20) > 50
    assert spike_score(1.0, CALM, 20) < 0
    assert spike_score(9.0, (*CALM[:-3], 20.0, 30.0, 40.0), 20) > 50  # wild ones do not hide it
    assert spike_score(5.001, (5.0,) * 20, 20) < 1  # equal losses make no spike of a hair
    assert seen(1.0, (2.0, 3.0), 2) == (3.0, 1.0)


def test_an_applied_step_moves_on(tmp_path):
    book, journal = ledger(tmp_path)
    state = book.settle(TrainState(losses=CALM), result(), 8, 0)
    assert (state.step, state.next_row, state.optimizer_step, state.skipped) == (1, 8, 1, 0)
    assert state.losses == (*CALM[1:], 5.0)
    assert state_from_json(json.loads(json.dumps(state.to_json({})))) == state
    assert journal.count(*Reason) == 0


def test_a_batch_of_pairs_alone_leaves_the_window_as_it_is(tmp_path):
    book, _ = ledger(tmp_path)
    only_pairs = replace(result(math.nan, masked=0), pairs=4)
    assert book.settle(TrainState(losses=CALM), only_pairs, 8, 0).losses == CALM


def test_warn_applies_and_says_so(tmp_path, caplog):
    book, _ = ledger(tmp_path)
    state = TrainState(losses=CALM)
    assert book.accepts(state, 9.0)
    assert book.settle(state, result(9.0), 8, 0).optimizer_step == 1
    assert "loss spike: 9.0000 on rows [0, 8)" in caplog.text
    caplog.clear()
    quiet, _ = ledger(tmp_path, "guard.spike=off")
    quiet.settle(state, result(9.0), 8, 0)
    assert caplog.text == ""


def test_skip_leaves_the_batch_out_within_a_budget(tmp_path):
    book, journal = ledger(tmp_path, "guard.spike=skip", "guard.spike_budget=1")
    state = TrainState(step=30, next_row=240, losses=CALM)
    assert book.accepts(state, 5.1) and not book.accepts(state, 9.0)
    state = book.settle(state, result(9.0, applied=False), 248, 20)
    assert (state.step, state.skipped, state.charged, state.optimizer_step) == (31, 1, 0, 0)
    assert state.losses == CALM
    assert read_journal(tmp_path / "skips.jsonl") == [
        Skip(31, 240, 248, Reason.spike, "9.0", "1.0")
    ]
    with pytest.raises(NonFiniteError, match=r"guard\.spike_budget=1 is used up"):
        book.settle(state, result(9.0, applied=False), 256, 20)
    assert journal.count(Reason.spike) == 1
    # Met again after a kill, the same one costs nothing.
    again, _ = ledger(
        tmp_path, "guard.spike=skip", "guard.spike_budget=1",
        entries=read_journal(tmp_path / "skips.jsonl"),
    )  # fmt: skip
    again.settle(TrainState(step=30, next_row=240, losses=CALM), result(9.0, False), 248, 20)
    assert len(read_journal(tmp_path / "skips.jsonl")) == 1


def test_a_rollback_is_noted_first_and_passed_over_afterwards(tmp_path):
    book, _ = ledger(tmp_path, "guard.spike=rollback", "guard.rollback_batches=1")
    state = TrainState(step=11, next_row=88, losses=CALM)
    assert book.may_roll_back(state, result(9.0, applied=False))
    assert not book.may_roll_back(state, result(5.0))
    with pytest.raises(RollBack):
        book.settle(state, result(9.0, applied=False), 96, 10)
    entries = read_journal(tmp_path / "skips.jsonl")
    assert [(e.step, e.reason) for e in entries] == [(12, Reason.rollback)]
    after, _ = ledger(tmp_path, "guard.spike=rollback", entries=entries)
    assert after.passes_over(state) and not after.passes_over(TrainState(step=10))
    moved = after.settle(state, result(math.nan, applied=False, grad_norm=math.nan), 96, 10)
    assert (moved.step, moved.skipped, moved.charged) == (12, 1, 0)
    # Without a checkpoint there is nothing to go back to.
    first, journal = ledger(tmp_path / "other", "guard.spike=rollback")
    (tmp_path / "other").mkdir()
    assert first.settle(state, result(9.0, applied=False), 96, 0).skipped == 1
    assert journal.count(Reason.spike) == 1


@pytest.mark.parametrize(("saved", "first"), [(20, 26), (27, 28)])
def test_a_rollback_passes_over_what_led_to_the_spike(tmp_path, saved, first):
    """As many batches as asked for, as far as they came after the checkpoint."""
    book, journal = ledger(tmp_path, "guard.spike=rollback", "guard.rollback_batches=5")
    with pytest.raises(RollBack):
        book.settle(TrainState(step=29, next_row=240, losses=CALM), result(9.0, False), 248, saved)
    assert journal.rolled_back() == set(range(first, 31))
    again, _ = ledger(
        tmp_path, "guard.spike=rollback", entries=read_journal(tmp_path / "skips.jsonl")
    )
    assert again.passes_over(TrainState(step=first - 1))
    assert not again.passes_over(TrainState(step=first - 2))


@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_in_fp16_a_spike_is_no_overflow(tmp_path, action):
    book, journal = ledger(
        tmp_path, f"guard.spike={action}", "engine.precision=fp16", "engine.stage=1"
    )
    state = TrainState(step=29, next_row=240, losses=CALM, loss_scale=LossScale(65536.0))
    if action == "rollback":
        with pytest.raises(RollBack):
            book.settle(state, result(9.0, False), 248, 20)
    else:
        moved = book.settle(state, result(9.0, False), 248, 20)
        assert moved.skipped == 1 and moved.loss_scale == state.loss_scale
    assert journal.count(Reason.spike, Reason.rollback) == 1
    over = book.settle(state, result(5.0, False, grad_norm=math.inf), 248, 20)
    assert over.loss_scale.scale == 32768.0 and over.skipped == 0


def test_a_number_that_is_not_finite_is_charged_and_a_listed_step_is_not(tmp_path):
    book, _ = ledger(tmp_path, "train.skip_budget=1", "train.skip_steps=[1]")
    wild = result(math.nan, applied=False, grad_norm=math.nan)
    state = book.settle(TrainState(), wild, 8, 0)
    assert (state.skipped, state.charged) == (1, 0)
    state = book.settle(state, wild, 16, 0)
    assert (state.skipped, state.charged) == (2, 1)
    with pytest.raises(NonFiniteError, match=r"rows \[16, 24\).*train\.skip_budget=1 is used up"):
        book.settle(state, wild, 24, 0)
    reasons = [entry.reason for entry in read_journal(tmp_path / "skips.jsonl")]
    assert reasons == [Reason.listed, Reason.non_finite]


def test_a_kill_in_the_middle_of_an_entry_is_mended(tmp_path):
    path = tmp_path / "skips.jsonl"
    assert read_journal(path) == []
    Journal(path, [], writes=True).add(ENTRY)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    assert read_journal(path) == [ENTRY]
    assert path.read_bytes() == whole
    Journal(path, [ENTRY], writes=True).add(ENTRY)
    Journal(path, [], writes=False).add(ENTRY)
    assert path.read_bytes() == whole
    path.write_bytes(b"nonsense\n" + whole)
    with pytest.raises(DataFault, match="cannot be read"):
        read_journal(path)
