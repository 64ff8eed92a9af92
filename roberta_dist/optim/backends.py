"""Whose kernels run the update.

    backend      AdamW                                         LAMB
    torch        torch's fused AdamW                           ours (optim/lamb.py)
    deepspeed    FusedAdam on an accelerator, else CPUAdam     refused: another optimizer
    apex         FusedAdam, ZeRO 0-2                           FusedLAMB, ZeRO 0

The configuration refuses what would be another optimizer (config/optim.py, config/roots.py); here
what is not installed is refused. All keep `exp_avg` and `exp_avg_sq` by tensor, but count their
updates in different places: see `set_step`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from roberta_dist.config.optim import Backend, OptimConfig
from roberta_dist.config.optim import Optimizer as Name
from roberta_dist.errors import ConfigError
from roberta_dist.model.kernels import describe_apex, has_nvidia_apex
from roberta_dist.optim.lamb import Lamb

Groups = list[dict[str, Any]]


def build_backend(groups: Groups, config: OptimConfig, device: torch.device) -> Optimizer:
    """The optimizer of `config.backend` with learning rate 0.

    Args:
        groups: parameter groups with their `weight_decay`.
        config: of the optimizer.
        device: where the update runs: the host with `engine.offload=cpu`.

    Raises:
        ConfigError: the backend is not installed, cannot be built, or needs an accelerator.
    """
    if config.backend is Backend.apex:
        return _or_refused(config.backend, lambda: _apex(groups, config, device))
    if config.backend is Backend.deepspeed:
        return _or_refused(config.backend, lambda: _deepspeed(groups, config, device))
    common = _common(config)
    if config.name is Name.lamb:
        return Lamb(
            groups,
            **common,
            bias_correction=config.bias_correction,
            trust_clip=(config.trust_clip[0], config.trust_clip[1]) if config.trust_clip else None,
            nvlamb=config.nvlamb,
        )
    return AdamW(groups, **common, fused=True)


def _common(config: OptimConfig) -> dict[str, Any]:
    return {
        "lr": 0.0,
        "betas": (config.beta1, config.beta2),
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }


def _or_refused(backend: Backend, make: Callable[[], Optimizer]) -> Optimizer:
    """What a foreign library says while it loads its kernels, as an error a user can act on."""
    try:
        return make()
    except (ImportError, OSError, RuntimeError) as error:
        cause = error.__cause__ or error
        raise ConfigError(
            f"optim.backend={backend.value}: its kernels cannot be loaded: {cause}",
            "use optim.backend=torch, or install what is missing (see launch/setup.sh)",
        ) from error


def _apex(groups: Groups, config: OptimConfig, device: torch.device) -> Optimizer:
    if not has_nvidia_apex():
        raise ConfigError(
            f"optim.backend=apex: NVIDIA's apex is not installed ({describe_apex()})",
            "use optim.backend=torch, or build apex from its source with its CUDA extensions",
        )
    if device.type != "cuda":
        raise ConfigError(
            f"optim.backend=apex: its kernels run on CUDA only, and the update runs on {device.type}",
            "use optim.backend=torch",
        )
    from apex.optimizers import FusedAdam, FusedLAMB

    common = _common(config)
    if config.name is Name.lamb:
        # Clipping is the engine's. Off is infinity here: apex divides the gradient by
        # norm / max_grad_norm wherever the norm is larger, so that 0 would make it all zeros.
        lamb: Optimizer = FusedLAMB(
            groups,
            **common,
            bias_correction=config.bias_correction,
            max_grad_norm=math.inf,
            use_nvlamb=config.nvlamb,
        )
        return lamb
    adam: Optimizer = FusedAdam(groups, **common, adam_w_mode=True)
    return adam


def has_cpu_adam() -> bool:
    """Whether DeepSpeed was installed with CPUAdam's operator; else its first use builds it."""
    from deepspeed.git_version_info import installed_ops

    return bool(installed_ops.get("cpu_adam", False))


def _deepspeed(groups: Groups, config: OptimConfig, device: torch.device) -> Optimizer:
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

    common = _common(config)
    if device.type == "cpu":
        on_host: Optimizer = DeepSpeedCPUAdam(groups, **common, adamw_mode=True)
        return on_host
    fused: Optimizer = FusedAdam(groups, **common, adam_w_mode=True)
    return fused


def set_step(optimizer: Optimizer, tensors: Iterable[Tensor], step: int) -> None:
    """Tell the optimizer how many updates it has made of `tensors`.

    AdamW counts in a tensor beside the moments, LAMB in one on the host, DeepSpeed in an integer
    there (its kernels take no tensor), apex in the group.
    """
    for tensor in tensors:
        state = optimizer.state[tensor]
        if isinstance(optimizer, AdamW):
            state["step"] = torch.tensor(float(step), device=tensor.device)
        else:
            state["step"] = torch.tensor(float(step)) if isinstance(optimizer, Lamb) else step
    if not isinstance(optimizer, (AdamW, Lamb)):
        for group in optimizer.param_groups:
            group["step"] = step
