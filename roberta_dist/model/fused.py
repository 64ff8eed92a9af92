"""The element-wise work between matrix products, each stretch as one function.

Compiled, each becomes one kernel forward and one backward; as plain torch they are the reference the
compiled ones are held to. Only tensors go in and out, and every size is dynamic, so there is one
compilation for all layers, rows and masked counts, none after the first step, and no module hook of
ZeRO-3 inside a compiled graph. (On a CPU torch adds up more than 4,096 numbers by another code: the first
batch beyond as many tokens is compiled for, once.)

T tokens · H width · Q queries of any heads and rows · K keys of a row · C predicted tokens ·
V vocabulary, padded
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._triton import has_triton

from roberta_dist.model.dropout import dropout, kept

Key = Tensor | None
"""int32 [2] of `dropout.draw_keys`; None does not drop."""


def norm_dropout(
    values_TH: Tensor, weight_H: Tensor, bias_H: Tensor, eps: float, p: float, key_2: Key
) -> Tensor:
    """LayerNorm, then dropout (the embeddings)."""
    return dropout(F.layer_norm(values_TH, weight_H.shape, weight_H, bias_H, eps), key_2, p)


def residual_norm(
    residual_TH: Tensor,
    branch_TH: Tensor,
    weight_H: Tensor,
    bias_H: Tensor,
    eps: float,
    p: float,
    key_2: Key,
) -> Tensor:
    """Dropout of the branch, residual sum, LayerNorm (the end of each half of a layer)."""
    summed = residual_TH + dropout(branch_TH, key_2, p)
    return F.layer_norm(summed, weight_H.shape, weight_H, bias_H, eps)


def bias_gelu(values_TF: Tensor, bias_F: Tensor) -> Tensor:
    """GELU of values + bias; erf, not the tanh approximation."""
    return F.gelu(values_TF + bias_F)


def _factor(scores_QK: Tensor, first_11: Tensor, p: float, key_2: Key) -> Tensor | float:
    """What dropout multiplies each probability by; the block's first one has the number `first_11`."""
    if key_2 is None or p == 0.0:
        return 1.0
    index = torch.arange(scores_QK.numel(), dtype=torch.int32, device=scores_QK.device)
    keep = kept(index.view(scores_QK.shape) + first_11, key_2, p)
    return torch.where(keep, 1.0 / (1.0 - p), 0.0)


def attention_weights(
    scores_QK: Tensor, first_11: Tensor, p: float, key_2: Key
) -> tuple[Tensor, Tensor]:
    """Softmax over the keys, then dropout.

    Args:
        scores_QK: scaled.
        first_11: int32 [1, 1], number of the first score among all of the batch, mod 2**32.
        p: dropout.
        key_2: of the dropout.

    Returns:
        weights, and fp32 [Q, 1] the logarithm of each softmax's denominator.
    """
    wide_QK = scores_QK.float()
    top_Q1 = wide_QK.amax(1, keepdim=True)
    powers_QK = (wide_QK - top_Q1).exp()
    total_Q1 = powers_QK.sum(1, keepdim=True)
    weights_QK = powers_QK * (1.0 / total_Q1) * _factor(scores_QK, first_11, p, key_2)
    return weights_QK.to(scores_QK.dtype), top_Q1 + total_Q1.log()


def attention_weights_backward(
    scores_QK: Tensor,
    grad_QK: Tensor,
    log_total_Q1: Tensor,
    inner_Q1: Tensor,
    first_11: Tensor,
    p: float,
    key_2: Key,
) -> tuple[Tensor, Tensor]:
    """The weights again, and the gradient of the scaled scores (Dao et al. 2022, algorithm 4).

    Args:
        scores_QK: scaled, as they went into `attention_weights`.
        grad_QK: gradient of the weights.
        log_total_Q1: from `attention_weights`.
        inner_Q1: Σ over the head of output · its gradient.
        first_11: as forward.
        p: as forward.
        key_2: as forward.
    """
    probability_QK = (scores_QK.float() - log_total_Q1).exp()
    factor_QK = _factor(scores_QK, first_11, p, key_2)
    grad_scores_QK = probability_QK * (grad_QK.float() * factor_QK - inner_Q1)
    dtype = scores_QK.dtype
    return (probability_QK * factor_QK).to(dtype), grad_scores_QK.to(dtype)


def cross_entropy(
    logits_CV: Tensor, labels_C: Tensor, vocab_size: int, differentiate: bool
) -> tuple[Tensor, Tensor]:
    """Cross-entropy over the first `vocab_size` entries, and what its sum's gradient is.

    Args:
        logits_CV: any floating type; may be overwritten.
        labels_C: int64.
        vocab_size: entries of the tokenizer.
        differentiate: whether the gradient is wanted.

    Returns:
        fp32 [C, 1], and softmax − one-hot, [C, V] in the type of the logits, 0 beyond `vocab_size`;
        something else in its place if it is not wanted.
    """
    columns_V = torch.arange(logits_CV.shape[1], dtype=torch.int32, device=logits_CV.device)
    labels_C1 = labels_C[:, None]
    scores_CV = torch.where(columns_V < vocab_size, logits_CV.float(), -math.inf)
    top_C1 = scores_CV.amax(1, keepdim=True)
    log_z_C1 = top_C1 + (scores_CV - top_C1).exp().sum(1, keepdim=True).log()
    own_C1 = logits_CV.gather(1, labels_C1).float() - log_z_C1
    if not differentiate:
        return -own_C1, labels_C
    # p − 1 in fp32: rounded before, a p near 1 would leave nothing.
    softmax_CV = (scores_CV - log_z_C1).exp()
    gradient_CV = torch.where(columns_V == labels_C1, own_C1.expm1(), softmax_CV)
    return -own_C1, gradient_CV.to(logits_CV.dtype)


WIDE_ROWS = 128
"""Rows of logits in fp32 at a time where nothing is compiled: 128 × 50,304 × 4 bytes = 25 MiB."""


def cross_entropy_by_rows(
    logits_CV: Tensor, labels_C: Tensor, vocab_size: int, differentiate: bool
) -> tuple[Tensor, Tensor]:
    """The same with few passes over memory one by one: some rows at a time, in place."""
    losses = []
    for start in range(0, len(labels_C), WIDE_ROWS):
        rows = slice(start, start + WIDE_ROWS)
        logits, labels_C1 = logits_CV[rows], labels_C[rows, None]
        scores = logits[:, :vocab_size].float()
        log_z_C1 = scores.logsumexp(1, keepdim=True)
        own_C1 = scores.gather(1, labels_C1) - log_z_C1
        losses.append(-own_C1)
        if differentiate:
            logits[:, :vocab_size] = (scores - log_z_C1).exp_()
            logits[:, vocab_size:] = 0.0
            logits.scatter_(1, labels_C1, own_C1.expm1().to(logits.dtype))
    return torch.cat(losses) if losses else logits_CV.new_zeros(0, 1), logits_CV


@dataclass(frozen=True)
class Pieces:
    """The functions above, as they are or compiled."""

    norm_dropout: Callable[..., Tensor] = norm_dropout
    residual_norm: Callable[..., Tensor] = residual_norm
    bias_gelu: Callable[..., Tensor] = bias_gelu
    attention_weights: Callable[..., tuple[Tensor, Tensor]] = attention_weights
    attention_weights_backward: Callable[..., tuple[Tensor, Tensor]] = attention_weights_backward
    cross_entropy: Callable[..., tuple[Tensor, Tensor]] = cross_entropy_by_rows


def can_compile() -> bool:
    """Whether torch.compile finds what it needs: Triton for a GPU, else a C++ compiler."""
    if torch.cuda.is_available():
        return has_triton()
    return any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++")))


@cache
def compiled_pieces() -> Pieces:
    """Each function compiled on its first call, for any sizes.

    A recompilation beyond torch's limit is an error (`fullgraph`), never a silent return to eager.
    """
    # Sizes that are equal in the first step (as many tokens as the model is wide) need not stay so.
    torch.fx.experimental._config.use_duck_shape = False

    return Pieces(
        **{
            name: torch.compile(piece, fullgraph=True, dynamic=True)
            for name, piece in vars(Pieces(cross_entropy=cross_entropy)).items()
        }
    )
