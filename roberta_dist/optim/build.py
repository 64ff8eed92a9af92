"""The optimizer object that DeepSpeed shards."""

from __future__ import annotations

from torch import nn
from torch.optim import AdamW

from roberta_dist.config.optim import OptimConfig
from roberta_dist.optim.groups import parameter_groups

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Names of the optimizer's per-element states: what a checkpoint holds beside the weights."""


def build_optimizer(model: nn.Module, config: OptimConfig) -> AdamW:
    """AdamW (Loshchilov, Hutter 2019) over the model's parameter groups.

    The learning rate starts at 0 and the loop sets it before each update, so no call DeepSpeed
    may make while it initialises can move a weight.
    """
    return AdamW(
        parameter_groups(model.named_parameters(), config),
        lr=0.0,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )
