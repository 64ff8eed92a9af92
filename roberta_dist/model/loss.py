"""Σ cross-entropy in fp32 without an fp32 copy of the logits.

M predicted tokens · V padded vocabulary · R rows
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ROWS = 128
"""Rows turned to fp32 at a time: 128 × 50,304 × 4 bytes = 25 MiB."""


class _CrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_MV: Tensor, labels_M: Tensor, vocab_size: int) -> Tensor:
        total = logits_MV.new_zeros((), dtype=torch.float32)
        log_z_M = logits_MV.new_empty(len(labels_M), dtype=torch.float32)
        for start in range(0, len(labels_M), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            scores = logits_MV[rows, :vocab_size].float()
            log_z_M[rows] = scores.logsumexp(1)
            total += (log_z_M[rows] - scores.gather(1, labels_M[rows, None]).squeeze(1)).sum()
        ctx.save_for_backward(logits_MV, labels_M, log_z_M)
        ctx.vocab_size = vocab_size
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grad_outputs
        logits_MV, labels_M, log_z_M = ctx.saved_tensors
        grad_MV = torch.zeros_like(logits_MV)  # columns beyond vocab_size stay 0
        for start in range(0, len(labels_M), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            scores = logits_MV[rows, : ctx.vocab_size].float()
            softmax = (scores - log_z_M[rows, None]).exp_()
            softmax.scatter_add_(1, labels_M[rows, None], softmax.new_full((len(softmax), 1), -1.0))
            grad_MV[rows, : ctx.vocab_size] = (softmax * grad).to(grad_MV.dtype)
        return grad_MV, None, None


def cross_entropy_sum(logits_MV: Tensor, labels_M: Tensor, vocab_size: int) -> Tensor:
    """Σ over M of −log softmax(logits[:vocab_size])[label], an fp32 scalar; 0 when M is 0.

    Args:
        logits_MV: any floating type; columns from `vocab_size` on are padding and ignored.
        labels_M: int64, in [0, vocab_size).
        vocab_size: entries of the tokenizer.
    """
    loss: Tensor = _CrossEntropySum.apply(logits_MV, labels_M, vocab_size)  # type: ignore[no-untyped-call]
    return loss


def pair_sums(logits_R2: Tensor, labels_R: Tensor) -> tuple[Tensor, Tensor]:
    """Σ cross-entropy and number of right answers over rows with a label, fp32 scalars.

    No row is selected by its value, which would make the host wait for the device.

    Args:
        logits_R2: any floating type.
        labels_R: int64, 0 or 1; a row with −1 counts in neither sum and has a zero gradient.
    """
    loss = F.cross_entropy(logits_R2.float(), labels_R, ignore_index=-1, reduction="sum")
    return loss, (logits_R2.argmax(1) == labels_R).sum().float()
