from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from roberta_dist.config.optim import Cooldown, Decay, ScheduleConfig, SchedulePhase
from roberta_dist.errors import ConfigError
from roberta_dist.optim.schedule import learning_rate, span_at

pytestmark = pytest.mark.unit

ENDING = {
    "linear": ScheduleConfig(max_steps=1000, warmup_steps=60),
    "square": ScheduleConfig(decay=Decay.polynomial, power=2, max_steps=1000, warmup_steps=60),
    "root": ScheduleConfig(decay=Decay.polynomial, power=0.5, max_steps=1000, warmup_steps=60),
    "cosine": ScheduleConfig(decay=Decay.cosine, max_steps=1000, warmup_steps=60),
    "wsd": ScheduleConfig(decay=Decay.wsd, max_steps=1000, warmup_steps=60, decay_steps=200),
}
"""Schedules that come to `end_lr`."""
ALL = ENDING | {
    "inverse_sqrt": ScheduleConfig(decay=Decay.inverse_sqrt, max_steps=1000, warmup_steps=60),
    "constant": ScheduleConfig(decay=Decay.constant, max_steps=1000, warmup_steps=60),
}


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


def nvidia_poly_warm_up(progress: float, base_lr: float, warmup: float) -> float:
    """PolyWarmUpScheduler.get_lr, degree 0.5, written from its formula; `progress` of the phase."""
    return base_lr * progress / warmup if progress < warmup else base_lr * (1 - progress) ** 0.5


def before(step: int, peak: float, s: ScheduleConfig) -> float:
    """The rule as it was while linear, polynomial and constant were all: the digits stay."""
    done = max(step, 1)
    if done <= s.warmup_steps:
        return peak * done / s.warmup_steps
    if s.decay is Decay.constant:
        return peak
    if done >= s.max_steps:
        return s.end_lr
    power = s.power if s.decay is Decay.polynomial else 1.0
    rest = 1 - (done - s.warmup_steps) / (s.max_steps - s.warmup_steps)
    return float((peak - s.end_lr) * rest**power + s.end_lr)


@pytest.mark.parametrize("power", [1.0, 0.5, 2.0])
def test_polynomial_is_fairseqs(power):
    s = ScheduleConfig(
        decay=Decay.polynomial, max_steps=1000, warmup_steps=60, power=power, end_lr=1e-5
    )
    for step in range(1000):
        expected = fairseq_polynomial_decay(step, 7e-4, s)
        assert learning_rate(step, 7e-4, s) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("decay", [Decay.linear, Decay.polynomial, Decay.constant])
@pytest.mark.parametrize("warmup", [0, 1, 24_000, 500_000])
def test_the_digits_of_old_schedules_stay(decay, warmup):
    s = ScheduleConfig(decay=decay, warmup_steps=warmup, power=0.7, end_lr=3e-6)
    for step in (*range(3), *range(7, 500_000, 1231), 24_000, 24_001, 499_999, 500_000):
        assert learning_rate(step, 6e-4, s) == before(step, 6e-4, s)


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


@pytest.mark.parametrize("name", ALL)
def test_warmup_rises_to_the_peak_and_then_nothing_rises(name):
    rates = [learning_rate(step, 7e-4, ALL[name]) for step in range(1, 1000)]
    assert rates[0] == pytest.approx(7e-4 / 60, rel=1e-12)
    assert all(a < b for a, b in pairwise(rates[:60]))
    assert rates[59] == max(rates) == 7e-4
    assert all(a >= b for a, b in pairwise(rates[59:]))


@pytest.mark.parametrize("name", ENDING)
def test_the_end_is_reached_and_not_before(name):
    s = replace(ENDING[name], end_lr=1e-5)
    assert learning_rate(1000, 7e-4, s) == learning_rate(5000, 7e-4, s) == 1e-5
    assert 1e-5 < learning_rate(999, 7e-4, s) < 7e-5


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        # (peak - end) · (1 + cos(π · progress)) / 2 + end at progress 1/4, 1/3, 1/2, 2/3
        (
            ScheduleConfig(decay=Decay.cosine, max_steps=1300, warmup_steps=100, end_lr=0.2),
            {400: 0.6 + 0.4 * math.sqrt(0.5), 500: 0.8, 700: 0.6, 900: 0.4},
        ),
        # peak · √(W / n)
        (
            ScheduleConfig(decay=Decay.inverse_sqrt, max_steps=10_000, warmup_steps=100),
            {100: 1.0, 400: 0.5, 900: 1 / 3, 10_000: 0.1},
        ),
        # without warmup as from an update on
        (
            ScheduleConfig(decay=Decay.inverse_sqrt, max_steps=100, warmup_steps=0),
            {0: 1.0, 1: 1.0, 4: 0.5, 64: 0.125},
        ),
        # the peak up to step 600; (peak - end) · (1 - √progress) + end at progress 1/100, 1/4, 81/100
        (
            ScheduleConfig(
                decay=Decay.wsd, max_steps=1000, warmup_steps=10, decay_steps=400, end_lr=0.2
            ),
            {11: 1.0, 600: 1.0, 604: 0.92, 700: 0.6, 924: 0.28},
        ),
        (
            ScheduleConfig(
                decay=Decay.wsd,
                max_steps=1000,
                warmup_steps=10,
                decay_fraction=0.4,
                end_lr=0.2,
                cooldown=Cooldown.linear,
            ),
            {11: 1.0, 600: 1.0, 604: 0.992, 700: 0.8, 924: 0.352},
        ),
    ],
)
def test_values_by_hand(schedule, values):
    found = {step: learning_rate(step, 1.0, schedule) for step in values}
    assert found == pytest.approx(values, rel=1e-12)


@pytest.mark.parametrize(("fraction", "steps"), [(0.06, 60), (0.0604, 60), (0.0606, 61), (1, 1000)])
def test_a_fraction_is_steps_of_the_run(fraction, steps):
    s = ScheduleConfig(max_steps=1000, warmup_steps=0, warmup_fraction=fraction)
    same = ScheduleConfig(max_steps=1000, warmup_steps=steps)
    for step in range(1001):
        assert learning_rate(step, 6e-4, s) == learning_rate(step, 6e-4, same)


@pytest.mark.parametrize("name", ["linear", "square", "root", "cosine"])
def test_decay_in_warmup_is_the_curve_of_a_run_without_one(name):
    s = replace(ENDING[name], decay_in_warmup=True)
    without = replace(ENDING[name], warmup_steps=0)
    assert learning_rate(60, 1.0, s) == 1.0
    for step in range(61, 1000):
        assert learning_rate(step, 1.0, s) == learning_rate(step, 1.0, without) < 1.0


PHASES = [
    SchedulePhase(from_step=300, lr=4e-3, warmup_steps=20),
    SchedulePhase(from_step=700, lr=1e-3, warmup_fraction=0.1),
]


@pytest.mark.parametrize("decay", Decay)
def test_each_phase_is_a_run_of_its_own(decay):
    base = ScheduleConfig(
        decay=decay,
        max_steps=1000,
        warmup_steps=50,
        end_lr=1e-5,
        decay_fraction=0.2 if decay is Decay.wsd else 0.0,
    )
    s = replace(base, phases=PHASES)
    alone = [
        (0, 6e-3, replace(base, max_steps=300)),
        (300, 4e-3, replace(base, max_steps=400, warmup_steps=20)),
        (700, 1e-3, replace(base, max_steps=300, warmup_steps=30)),
    ]
    for first, peak, phase in alone:
        for step in range(phase.max_steps):
            assert learning_rate(first + step, 6e-3, s) == learning_rate(step, peak, phase)
        assert learning_rate(first + phase.warmup_steps, 6e-3, s) == peak
    ends = decay not in (Decay.constant, Decay.inverse_sqrt)
    assert learning_rate(1000, 6e-3, s) == 1e-5 if ends else learning_rate(1000, 6e-3, s) > 1e-4


def test_spans():
    s = ScheduleConfig(max_steps=1000, warmup_steps=50, phases=PHASES)
    told = {(span_at(step, 6e-3, s).first, span_at(step, 6e-3, s).steps) for step in range(1000)}
    assert told == {(0, 300), (300, 400), (700, 300)}
    assert [span_at(step, 6e-3, s).peak for step in (299, 300, 699, 700)] == [
        6e-3,
        4e-3,
        4e-3,
        1e-3,
    ]
    assert [span_at(step, 6e-3, s).warmup for step in (0, 300, 999)] == [50, 20, 30]


def test_two_phases_are_nvidias():
    """Up to the rounding of warmup to whole steps; its last step is at the peak here, theirs decays."""
    s = ScheduleConfig(
        decay=Decay.polynomial,
        power=0.5,
        decay_in_warmup=True,
        max_steps=7038 + 1563,
        warmup_steps=0,
        warmup_fraction=0.2843,
        phases=[SchedulePhase(from_step=7038, lr=4e-3, warmup_fraction=0.128)],
    )
    assert (span_at(0, 6e-3, s).warmup, span_at(7038, 6e-3, s).warmup) == (2001, 200)
    for first, steps, peak, warmup in ((0, 7038, 6e-3, 0.2843), (7038, 1563, 4e-3, 0.128)):
        for step in set(range(1, steps)) - {round(warmup * steps)}:
            expected = nvidia_poly_warm_up(step / steps, peak, warmup)
            assert learning_rate(first + step, 6e-3, s) == pytest.approx(expected, rel=5e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"warmup_fraction": 0.1, "warmup_steps": 5},
            r"warmup_steps=5: and warmup_fraction=0.1 both",
        ),
        ({"warmup_fraction": 1.5, "warmup_steps": 0}, r"warmup_fraction=1.5: must be in \[0, 1\]"),
        ({"warmup_steps": 101}, r"schedule.warmup_steps=101: must be in \[0, 100\]"),
        ({"decay": Decay.wsd}, r"schedule.decay=wsd: wsd, and no other decay, has decay_steps"),
        ({"decay": Decay.cosine, "decay_steps": 9}, r"schedule.decay=cosine: wsd, and no other"),
        (
            {"decay": Decay.wsd, "decay_steps": 9, "decay_fraction": 0.1},
            r"both say how long the decay",
        ),
        (
            {"decay": Decay.wsd, "decay_steps": 95},
            r"warmup \+ schedule.decay=105: must be in \[0, 100",
        ),
        ({"phases": [SchedulePhase(100, 1e-3)]}, r"from_step=100: must be after 0 and before"),
        (
            {"phases": [SchedulePhase(50, 1e-3), SchedulePhase(50, 1e-3)]},
            r"from_step=50: must be after 50 and before schedule.max_steps=100",
        ),
        ({"phases": [SchedulePhase(5, 1e-3)]}, r"warmup_steps=10: must be in \[0, 5\]"),
        (
            {"phases": [SchedulePhase(50, 1e-3, 30), SchedulePhase(70, 1e-3)]},
            r"phases: warmup_steps=30: must be in \[0, 20\], the steps from 50 to",
        ),
        (
            {"phases": [SchedulePhase(50, 1e-3, 3, 0.5)]},
            r"phases: warmup_steps=3: and warmup_fraction=0.5 both",
        ),
    ],
)
def test_impossible_schedules_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        ScheduleConfig(**{"max_steps": 100, "warmup_steps": 10, **values})


@pytest.mark.parametrize(("from_step", "lr"), [(0, 1e-3), (-1, 1e-3), (5, 0.0), (5, math.inf)])
def test_impossible_phases_are_refused(from_step, lr):
    with pytest.raises(ConfigError, match=r"schedule\.phases"):
        SchedulePhase(from_step, lr)
