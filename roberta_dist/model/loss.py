"""Linear layer and Σ cross-entropy in one, without an fp32 copy of the logits.

M predicted tokens · C predicted tokens of a chunk · H width · V padded vocabulary · R rows
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roberta_dist.config.model import CrossEntropy
from roberta_dist.model.fused import Pieces, cross_entropy_by_rows

CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}
"""Logits that may always be held, by type of device; on others as on a CPU. On a GPU, whose products
and kernels want many rows, those of 10,000 tokens."""


def rows_at_once(weight_VH: Tensor) -> int:
    """Rows whose logits are held together: no more bytes than the table, or CHUNK_BYTES."""
    entries, width = weight_VH.shape
    least = CHUNK_BYTES.get(weight_VH.device.type, CHUNK_BYTES["cpu"])
    return max(width, least // (entries * weight_VH.element_size()))


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients are made where the logits are, one product forward and two backward in all.

    Up to `rows_at_once` the gradient of the logits is kept, and what comes from above multiplies the
    features. With more, chunks of as many rows leave only the gradients of features and table.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features_MH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor,
        labels_M: Tensor,
        vocab_size: int,
        pieces: Pieces,
        differentiate: bool,
    ) -> Tensor:
        rows, most = len(features_MH), rows_at_once(weight_VH)
        total = features_MH.new_zeros((), dtype=torch.float32)
        kept: tuple[Tensor, ...] = ()
        if rows > most and differentiate:
            kept = (
                torch.empty_like(features_MH),
                torch.zeros_like(weight_VH, dtype=torch.float32),
                torch.zeros_like(bias_V, dtype=torch.float32),
            )
        for start in range(0, max(rows, 1), most):
            chunk = slice(start, start + most)
            logits_CV = F.linear(features_MH[chunk], weight_VH, bias_V)
            # For a single row torch.compile would make a graph of its own.
            score = pieces.cross_entropy if len(logits_CV) > 1 else cross_entropy_by_rows
            losses, grad_CV = score(logits_CV, labels_M[chunk], vocab_size, differentiate)
            total += losses.sum()
            if kept:
                torch.mm(grad_CV, weight_VH, out=kept[0][chunk])
                kept[1].add_(grad_CV.t() @ features_MH[chunk])
                kept[2].add_(grad_CV.sum(0, dtype=torch.float32))
        ctx.chunked = bool(kept)
        ctx.save_for_backward(*(kept or (features_MH, grad_CV)), weight_VH)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        *kept, weight_VH = ctx.saved_tensors
        if ctx.chunked:
            own = [(part * grad).to(weight_VH.dtype) for part in kept]
            return own[0], own[1], own[2], None, None, None, None
        features_MH, grad_MV = kept
        scaled_MH = (features_MH * grad).to(features_MH.dtype)
        grad_bias = grad_MV.sum(0, dtype=torch.float32) * grad
        grad_features = (grad_MV @ weight_VH) * grad.to(weight_VH.dtype)
        grad_weight = grad_MV.t() @ scaled_MH
        return grad_features, grad_weight, grad_bias.to(weight_VH.dtype), None, None, None, None


def linear_cross_entropy_sum(
    features_MH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor,
    labels_M: Tensor,
    vocab_size: int,
    kernel: CrossEntropy,
    pieces: Pieces,
) -> Tensor:
    """Σ over M of −log softmax((features · weightᵀ + bias)[:vocab_size])[label].

    Args:
        features_MH: any floating type.
        weight_VH: its rows from `vocab_size` on are padding and ignored.
        bias_V: likewise.
        labels_M: int64, in [0, vocab_size).
        vocab_size: entries of the tokenizer.
        kernel: `kernels.cross_entropy`.
        pieces: compiled or not.

    Returns:
        an fp32 scalar; 0, with zero gradients, when M is 0.
    """
    if kernel is CrossEntropy.torch and len(labels_M):
        padding = torch.arange(len(bias_V), device=bias_V.device) >= vocab_size
        return F.linear_cross_entropy(
            features_MH,
            weight_VH,
            labels_M,
            linear_bias=bias_V.masked_fill(padding, torch.finfo(bias_V.dtype).min / 2),
            reduction="sum",
            options=nn.LinearCrossEntropyOptions(),
        )
    # Inside a Function gradients look needed even where no one asked for them.
    differentiate = torch.is_grad_enabled()
    loss: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        features_MH, weight_VH, bias_V, labels_M, vocab_size, pieces, differentiate
    )
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
