"""Parameter groups: what decays and what does not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from roberta_dist.config.optim import OptimConfig


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimConfig
) -> list[dict[str, Any]]:
    """Matrices and embeddings decay; biases and LayerNorm weights do not, unless asked.

    fairseq decays every parameter (`decay_bias_and_norm=true`); NVIDIA's BERT recipes exclude
    biases and normalisation weights, which is the default here.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for _, parameter in named_parameters:
        decays = parameter.ndim >= 2 or config.decay_bias_and_norm
        (decayed if decays else kept).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
