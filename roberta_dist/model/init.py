"""Initial weights: each a pure function of (seed, parameter name), not of construction order.

RoBERTa (fairseq `init_bert_params`): N(0, std) for every matrix, zero biases and pad rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from roberta_dist.model.encoder import RobertaForPretraining
from roberta_dist.model.layers import PAD_ROW, Positions, Vocabulary
from roberta_dist.runtime.rng import derive_key


def normal_tensor(name: str, shape: Sequence[int], std: float, seed: int) -> Tensor:
    """fp32 N(0, std) drawn on the CPU from a generator keyed by (seed, name)."""
    generator = torch.Generator().manual_seed(derive_key(seed, "init", name))
    return torch.empty(tuple(shape)).normal_(0.0, std, generator=generator)


@torch.no_grad()
def init_weights(model: RobertaForPretraining, seed: int) -> None:
    """Set every parameter of `model` in place.

    Args:
        model: whole, on any device and in any floating type; not yet partitioned by ZeRO-3.
        seed: `train.seed`.
    """
    std = model.config.init_std
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            parameter.copy_(normal_tensor(name, parameter.shape, std, seed))
        else:
            parameter.zero_()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.fill_(1.0)
        elif isinstance(module, Positions):
            module.weight[PAD_ROW] = 0.0
        elif isinstance(module, Vocabulary):
            module.weight[PAD_ROW] = 0.0
            module.weight[model.vocab_size :] = 0.0
