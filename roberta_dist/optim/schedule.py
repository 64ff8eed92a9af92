"""Learning rate as a pure function of the step: nothing to save, nothing to resume."""

from __future__ import annotations

import math
from dataclasses import dataclass

from roberta_dist.config.optim import Cooldown, Decay, ScheduleConfig, part_steps


@dataclass(frozen=True)
class Span:
    """The steps over which one warmup and one decay extend.

    Attributes:
        first: its first step.
        steps: how many it has.
        peak: learning rate at the end of warmup.
        warmup: steps of warmup.
        cooldown: steps of the last part under `wsd`, else 0.
    """

    first: int
    steps: int
    peak: float
    warmup: int
    cooldown: int


def span_at(step: int, peak: float, schedule: ScheduleConfig) -> Span:
    """The span that `step` lies in; `peak` is that of the first."""
    first, warmup, fraction = 0, schedule.warmup_steps, schedule.warmup_fraction
    for phase in schedule.phases:
        if phase.from_step <= step:
            first, peak = phase.from_step, phase.lr
            warmup, fraction = phase.warmup_steps, phase.warmup_fraction
    steps = schedule.steps_from(first)
    return Span(
        first,
        steps,
        peak,
        part_steps(warmup, fraction, steps),
        part_steps(schedule.decay_steps, schedule.decay_fraction, steps),
    )


def learning_rate(step: int, peak: float, schedule: ScheduleConfig) -> float:
    """Learning rate of the update that takes the model from `step` to `step + 1`.

    As in fairseq's schedulers (optim/lr_scheduler/polynomial_decay_schedule.py), with n updates done
    (at least 1), warmup W and T updates in all,

        n ≤ W:  peak · n / W
        else:   (peak - end) · f((n - B) / (T - B)) + end

    with B = W (0 under `decay_in_warmup`; under `wsd` the step at which its last part begins, up to
    which the rate is the peak) and f the shape of the decay. `constant` keeps the peak;
    `inverse_sqrt` is peak · √(max(W, 1) / n). With phases, n, T and W count inside the phase.

    Args:
        step: updates done before this one, from 0.
        peak: `optim.lr`.
        schedule: warmup, decay, end and phases.
    """
    span = span_at(step, peak, schedule)
    done = max(step - span.first, 1)
    if done <= span.warmup:
        return span.peak * done / span.warmup
    if schedule.decay is Decay.constant:
        return span.peak
    if schedule.decay is Decay.inverse_sqrt:
        return span.peak * math.sqrt(max(span.warmup, 1) / done)
    if done >= span.steps:
        return schedule.end_lr
    begin = 0 if schedule.decay_in_warmup else span.warmup
    if schedule.decay is Decay.wsd:
        begin = span.steps - span.cooldown
        if done <= begin:
            return span.peak
    shape = _shape((done - begin) / (span.steps - begin), schedule)
    return float((span.peak - schedule.end_lr) * shape + schedule.end_lr)


def _shape(progress: float, schedule: ScheduleConfig) -> float:
    """What is left of (peak - end) when `progress` of the decay, in [0, 1], is done.

    `cosine` is Loshchilov and Hutter 2017 (arXiv 1608.03983), equation 5, without restarts. `wsd` is
    Hu et al. 2024 (MiniCPM, arXiv 2404.06395) with the last part of Hägele et al. 2024
    (arXiv 2405.18392), 1 - √progress or linear.
    """
    if schedule.decay is Decay.cosine:
        return (1 + math.cos(math.pi * progress)) / 2
    if schedule.decay is Decay.wsd and schedule.cooldown is Cooldown.one_minus_sqrt:
        return 1 - math.sqrt(progress)
    power = schedule.power if schedule.decay is Decay.polynomial else 1.0
    return float((1 - progress) ** power)
