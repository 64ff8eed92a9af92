"""The loss scale: halved by an overflow down to 1, doubled after a window of updates."""

from __future__ import annotations

import pytest

from roberta_dist.optim.loss_scale import LossScale
from roberta_dist.train.state import TrainState, state_from_json

pytestmark = pytest.mark.unit


def test_it_halves_and_doubles():
    scale = LossScale(4.0)
    for _ in range(2):
        scale = scale.applied(3)
    assert scale == LossScale(4.0, 2)
    assert scale.applied(3) == LossScale(8.0, 0)
    assert scale.overflowed() == LossScale(2.0, 0, 1)
    assert scale.overflowed().applied(3) == LossScale(2.0, 1, 1)


def test_it_stops_at_one():
    scale = LossScale(2.0).overflowed()
    assert scale.scale == 1.0
    assert not scale.can_shrink
    assert scale.overflowed().scale == 1.0


def test_a_window_of_zero_keeps_it():
    assert LossScale(4.0, 10**6).applied(0).scale == 4.0


def test_it_survives_a_checkpoint():
    state = TrainState(step=3, loss_scale=LossScale(512.0, 7, 2))
    assert state_from_json(state.to_json({})) == state
    older = {key: value for key, value in state.to_json({}).items() if key != "loss_scale"}
    assert state_from_json(older).loss_scale == LossScale()
