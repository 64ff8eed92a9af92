"""The optimizer object that DeepSpeed shards."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from roberta_dist.config.optim import Backend, OptimConfig
from roberta_dist.optim.backends import build_backend
from roberta_dist.optim.groups import parameter_groups

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Names of the optimizer's per-element states: what a checkpoint holds beside the weights."""


def build_optimizer(
    model: nn.Module, config: OptimConfig, device: torch.device | None = None
) -> Optimizer:
    """AdamW (Loshchilov, Hutter 2019) or LAMB over the model's parameter groups.

    The learning rate starts at 0 and the loop sets it before each update, so no call DeepSpeed
    may make while it initialises can move a weight.

    Args:
        model: on any device; moved to `device` for apex, which looks there when it is made.
        config: of the optimizer.
        device: where the update runs: the host with `engine.offload=cpu`; None is the host.

    Raises:
        ConfigError: `optim.backend` cannot run here.
    """
    device = device or torch.device("cpu")
    if config.backend is Backend.apex:
        model.to(device)
    return build_backend(parameter_groups(model.named_parameters(), config), config, device)
