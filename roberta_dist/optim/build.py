"""The optimizer object that DeepSpeed shards."""

from __future__ import annotations

from torch import nn
from torch.optim import AdamW, Optimizer

from roberta_dist.config.optim import OptimConfig
from roberta_dist.config.optim import Optimizer as Name
from roberta_dist.optim.groups import parameter_groups
from roberta_dist.optim.lamb import Lamb

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Names of the optimizer's per-element states: what a checkpoint holds beside the weights."""


def build_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """AdamW (Loshchilov, Hutter 2019) or LAMB over the model's parameter groups.

    The learning rate starts at 0 and the loop sets it before each update, so no call DeepSpeed
    may make while it initialises can move a weight.
    """
    groups = parameter_groups(model.named_parameters(), config)
    betas = (config.beta1, config.beta2)
    if config.name is Name.lamb:
        low_high = config.trust_clip
        return Lamb(
            groups,
            lr=0.0,
            betas=betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            bias_correction=config.bias_correction,
            trust_clip=(low_high[0], low_high[1]) if low_high else None,
            nvlamb=config.nvlamb,
        )
    return AdamW(
        groups,
        lr=0.0,
        betas=betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )
