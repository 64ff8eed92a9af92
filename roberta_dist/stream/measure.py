"""Losses as sums, so that batches, ranks and corpora can be added before anything is divided."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from roberta_dist.stream.batch import Batch
from roberta_dist.stream.tensors import to_tensors


@dataclass(frozen=True)
class Sums:
    """What a model made of some labelled batches.

    Attributes:
        mlm: Σ cross-entropy over predicted tokens, nats.
        masked: predicted tokens.
        nsp: Σ cross-entropy over labelled pairs, nats.
        pairs: labelled pairs; 0 where the format has none.
        correct: pairs answered right.
    """

    mlm: float = 0.0
    masked: int = 0
    nsp: float = 0.0
    pairs: int = 0
    correct: int = 0

    @classmethod
    def of(cls, values: Tensor) -> Sums:
        """From what `measure` returns, summed over ranks or not."""
        mlm, masked, nsp, pairs, correct = values.tolist()
        return cls(mlm, int(masked), nsp, int(pairs), int(correct))

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.mlm + other.mlm,
            self.masked + other.masked,
            self.nsp + other.nsp,
            self.pairs + other.pairs,
            self.correct + other.correct,
        )

    @property
    def loss(self) -> float:
        """Cross-entropy per predicted token, nats; 0 without any."""
        return self.mlm / max(self.masked, 1)

    @property
    def nsp_loss(self) -> float | None:
        """Cross-entropy per pair, nats; None without pairs."""
        return self.nsp / self.pairs if self.pairs else None

    @property
    def nsp_accuracy(self) -> float | None:
        """Share of the pairs answered right; None without pairs."""
        return self.correct / self.pairs if self.pairs else None


def masked_tokens(batch: Batch) -> int:
    """Predicted tokens."""
    return len(batch.masked_index_M)


def labelled_pairs(batch: Batch) -> int:
    """Rows with a next-sentence label."""
    return 0 if batch.nsp_labels_R is None else int((batch.nsp_labels_R >= 0).sum())


@torch.no_grad()
def measure(model: Callable[..., Tensor], batches: Iterable[Batch], device: torch.device) -> Tensor:
    """The five numbers of `Sums` over `batches`, float64 [5] on `device`.

    Args:
        model: `RobertaForPretraining` or what wraps it, in evaluation mode.
        batches: this rank's.
        device: the model's.
    """
    values = torch.zeros(5, dtype=torch.float64, device=device)
    for batch in batches:
        sums = model(**to_tensors(batch, device)).double().reshape(-1)
        values[0] += sums[0]
        values[1] += masked_tokens(batch)
        if batch.nsp_labels_R is not None:
            values[2] += sums[1]
            values[3] += labelled_pairs(batch)
            values[4] += sums[2]
    return values
