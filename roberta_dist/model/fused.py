"""The element-wise work between matrix products, each stretch as one function.

Compiled, each becomes one kernel forward and one backward; as plain torch they are the reference the
compiled ones are held to. Only tensors go in and out, and every size is dynamic, so there is one
compilation for all layers, rows and masked counts, none after the first step, and no module hook of
ZeRO-3 inside a compiled graph.

T tokens · H width · Q queries of any heads and rows · K keys of a row
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

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


@dataclass(frozen=True)
class Pieces:
    """The functions above, as they are or compiled."""

    norm_dropout: Callable[..., Tensor] = norm_dropout
    residual_norm: Callable[..., Tensor] = residual_norm
    bias_gelu: Callable[..., Tensor] = bias_gelu
    attention_weights: Callable[..., tuple[Tensor, Tensor]] = attention_weights
    attention_weights_backward: Callable[..., tuple[Tensor, Tensor]] = attention_weights_backward


def can_compile() -> bool:
    """Whether torch.compile finds what it needs: Triton for a GPU, else a C++ compiler."""
    if torch.cuda.is_available():
        return bool(torch.utils._triton.has_triton())
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
            for name, piece in vars(Pieces()).items()
        }
    )
