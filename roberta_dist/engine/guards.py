"""What decides whether an update is applied, the same at every ZeRO stage.

DeepSpeed skips a non-finite gradient in silence at stages 1-3 and applies it at stage 0. Here the
decision is taken before `engine.step()` from numbers all ranks agree on.
"""

from __future__ import annotations

import math

from roberta_dist.engine.result import StepResult
from roberta_dist.errors import NonFiniteError
from roberta_dist.optim.loss_scale import LossScale


def is_finite(*numbers: float) -> bool:
    """True if the step with these losses and this gradient norm may be applied."""
    return all(math.isfinite(number) for number in numbers)


def is_overflow(result: StepResult, scale: LossScale) -> bool:
    """True if the update was not applied because of fp16's loss scale, and a smaller one may do."""
    overflowed = math.isfinite(result.loss) and not math.isfinite(result.grad_norm)
    return not result.applied and overflowed and scale.can_shrink


def charge_skip(
    step: int, loss: float, grad_norm: float, rows: tuple[int, int], charged: int, budget: int
) -> int:
    """Count one batch against the budget of non-finite ones.

    Args:
        step: the step that is skipped.
        loss: its loss.
        grad_norm: its gradient norm.
        rows: first and one past the last global row of the batch.
        charged: batches counted so far in this run.
        budget: `train.skip_budget`.

    Returns:
        The new count.

    Raises:
        NonFiniteError: the budget is used up.
    """
    if charged >= budget:
        raise NonFiniteError(
            f"step {step}: loss={loss} grad_norm={grad_norm} on rows [{rows[0]}, {rows[1]}), "
            f"and train.skip_budget={budget} is used up",
            "lower optim.lr or lengthen schedule.warmup_steps; or raise train.skip_budget",
        )
    return charged + 1
