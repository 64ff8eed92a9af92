from __future__ import annotations

from itertools import pairwise

import pytest

from roberta_dist.config.optim import Decay, ScheduleConfig
from roberta_dist.optim.schedule import learning_rate

pytestmark = pytest.mark.unit


def fairseq_polynomial_decay(updates: int, peak: float, s: ScheduleConfig) -> float:
    """step_update of fairseq's scheduler, written from its formula; the first update uses peak/W."""
    if updates == 0:
        updates = 1
    if s.warmup_steps > 0 and updates <= s.warmup_steps:
        return peak * (updates / s.warmup_steps)
    if updates >= s.max_steps:
        return s.end_lr
    remaining = 1 - (updates - s.warmup_steps) / (s.max_steps - s.warmup_steps)
    return (peak - s.end_lr) * remaining**s.power + s.end_lr


@pytest.mark.parametrize("power", [1.0, 0.5, 2.0])
def test_polynomial_is_fairseqs(power):
    s = ScheduleConfig(
        decay=Decay.polynomial, max_steps=1000, warmup_steps=60, power=power, end_lr=1e-5
    )
    for step in range(1000):
        expected = fairseq_polynomial_decay(step, 7e-4, s)
        assert learning_rate(step, 7e-4, s) == pytest.approx(expected, rel=1e-12)


def test_shape():
    s = ScheduleConfig(max_steps=100, warmup_steps=10)
    rates = [learning_rate(step, 1.0, s) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == 1.0
    assert all(a > b > 0 for a, b in pairwise(rates[10:]))


def test_constant_after_warmup_and_no_warmup():
    s = ScheduleConfig(decay=Decay.constant, max_steps=100, warmup_steps=10)
    assert learning_rate(99, 1.0, s) == 1.0
    assert learning_rate(0, 1.0, ScheduleConfig(max_steps=10, warmup_steps=0)) < 1.0
