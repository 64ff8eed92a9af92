"""fp16's loss scale as a pure function of what happened: it resumes with the run, at any world size.

Micikevicius et al. 2018 (arXiv 1710.03740, §3.2); the rule of apex and fairseq's dynamic scaler.
"""

from __future__ import annotations

from dataclasses import dataclass

SMALLEST = 1.0
"""A gradient that overflows at this scale is not the scale's fault."""


@dataclass(frozen=True)
class LossScale:
    """What the loss is multiplied by before the backward pass.

    Attributes:
        scale: the factor; 1 outside fp16.
        good_steps: updates applied since it last changed.
        overflows: batches lost to a scale that was too large.
    """

    scale: float = 1.0
    good_steps: int = 0
    overflows: int = 0

    @property
    def can_shrink(self) -> bool:
        """True if a smaller scale may cure an overflow."""
        return self.scale > SMALLEST

    def overflowed(self) -> LossScale:
        """Half the scale after a gradient that was not finite."""
        return LossScale(max(self.scale / 2, SMALLEST), 0, self.overflows + 1)

    def applied(self, window: int) -> LossScale:
        """Twice the scale after `window` updates in a row; 0 keeps it for ever."""
        good = self.good_steps + 1
        if window and good >= window:
            return LossScale(self.scale * 2, 0, self.overflows)
        return LossScale(self.scale, good, self.overflows)
