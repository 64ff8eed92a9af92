"""Learning rate as a pure function of the step: nothing to save, nothing to resume."""

from __future__ import annotations

from roberta_dist.config.optim import Decay, ScheduleConfig


def learning_rate(step: int, peak: float, schedule: ScheduleConfig) -> float:
    """Learning rate of the update that takes the model from `step` to `step + 1`.

    fairseq's polynomial_decay (optim/lr_scheduler/polynomial_decay_schedule.py): with n updates
    done (at least 1), warmup W and T updates in all,

        n ≤ W:  peak · n / W
        else:   (peak - end) · (1 - (n - W) / (T - W)) ** power + end

    Args:
        step: updates done before this one, from 0.
        peak: `optim.lr`.
        schedule: warmup, decay and end.
    """
    done = max(step, 1)
    if done <= schedule.warmup_steps:
        return peak * done / schedule.warmup_steps
    if schedule.decay is Decay.constant:
        return peak
    if done >= schedule.max_steps:
        return schedule.end_lr
    power = schedule.power if schedule.decay is Decay.polynomial else 1.0
    rest = 1 - (done - schedule.warmup_steps) / (schedule.max_steps - schedule.warmup_steps)
    return float((peak - schedule.end_lr) * rest**power + schedule.end_lr)
