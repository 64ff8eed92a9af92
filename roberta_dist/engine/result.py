"""What a step is divided by and what it did."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Counts:
    """What a global batch is divided by, equal on every rank.

    Attributes:
        masked: predicted positions.
        tokens: tokens of real rows.
        pairs: rows with a next-sentence label.
    """

    masked: int
    tokens: int
    pairs: int


@dataclass(frozen=True)
class StepResult:
    """What one step did, equal on every rank but for the times.

    Attributes:
        loss: Σ CE / masked tokens of the global batch, nats; nan when nothing was masked.
        nsp_loss: Σ CE / pairs of the global batch, nats; nan without pairs.
        nsp_accuracy: share of the pairs answered right; nan without pairs.
        masked_tokens: predicted positions of the global batch.
        pairs: rows of the global batch with a next-sentence label.
        tokens: tokens of the global batch.
        grad_norm: global gradient norm before clipping.
        applied: the weights moved.
        layers: metric → value of the layers, if they were to be watched.
        compute_s, optimizer_s: seconds of forward, backward and reduction; of the update.
    """

    loss: float
    nsp_loss: float
    nsp_accuracy: float
    masked_tokens: int
    pairs: int
    tokens: int
    grad_norm: float
    applied: bool
    layers: dict[str, float]
    compute_s: float
    optimizer_s: float

    @classmethod
    def passed_over(cls, counts: Counts) -> StepResult:
        """Of a batch that was read and not trained on."""
        return cls(
            loss=math.nan,
            nsp_loss=math.nan,
            nsp_accuracy=math.nan,
            masked_tokens=counts.masked,
            pairs=counts.pairs,
            tokens=counts.tokens,
            grad_norm=math.nan,
            applied=False,
            layers={},
            compute_s=0.0,
            optimizer_s=0.0,
        )
