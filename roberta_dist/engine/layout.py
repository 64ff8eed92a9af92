"""Flat range ↔ named tensor: where each rank holds which part of which parameter.

ZeRO replaces parameters by flat fp32 tensors. DeepSpeed's own maps are read, per stage:

    0                    the parameter itself, whole on every rank
    1, 2 (fp32, bf16)    `param._hp_mapping` into `single_partition_of_fp32_groups`
    1 with bf16          `param._hp_mapping` into BF16_Optimizer's `fp32_groups_flat_partition`
    3                    `grad_position` into `fp32_partitioned_groups_flat` (one a sub-group)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Fragment:
    """A contiguous part of one named parameter that lives on this rank.

    Attributes:
        name: parameter name in the module.
        shape: shape of the whole parameter.
        start: first element, in the parameter flattened.
        length: elements.
        flat: fp32 tensor that the optimizer updates.
        offset: first element inside `flat`.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    length: int
    flat: Tensor
    offset: int

    def view(self, tensor: Tensor) -> Tensor:
        """This fragment's elements of `tensor`, which has the layout of `flat` (1-D view)."""
        return tensor.detach().view(-1).narrow(0, self.offset, self.length)

    def narrow(self, start: int, length: int) -> Fragment:
        """The part [start, start + length) of the parameter, which must lie inside this one."""
        shift = start - self.start
        return Fragment(self.name, self.shape, start, length, self.flat, self.offset + shift)


def whole_shape(parameter: Any) -> tuple[int, ...]:
    """Shape of the whole parameter; stage 3 leaves an empty placeholder in the module."""
    return tuple(parameter.ds_shape if "ds_shape" in vars(parameter) else parameter.shape)


def zero_stage(engine: Any) -> int:
    """ZeRO stage of a DeepSpeed engine."""
    return int(engine.zero_optimization_stage())


def uses_bf16_optimizer(engine: Any) -> bool:
    """Stage 1 with bf16 weights and fp32 accumulation runs in another class."""
    return type(engine.optimizer).__name__ == "BF16_Optimizer"


def offloads(engine: Any) -> bool:
    """Weights, moments and gradients of the update live in host memory."""
    return bool(engine.zero_use_cpu_optimizer())


def flat_tensors(engine: Any) -> list[Tensor]:
    """Every fp32 tensor the optimizer updates on this rank."""
    stage = zero_stage(engine)
    if stage == 0:
        return list(engine.module.parameters())
    if stage == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    if uses_bf16_optimizer(engine):
        return list(engine.optimizer.fp32_groups_flat_partition)
    return list(engine.optimizer.single_partition_of_fp32_groups)


def held_fragments(engine: Any) -> list[Fragment]:
    """Everything this rank holds, in the module's parameter order."""
    fragments = []
    for name, parameter in engine.module.named_parameters():
        fragment = _fragment(engine, name, parameter)
        if fragment is not None and fragment.length > 0:
            fragments.append(fragment)
    return fragments


def owned_fragments(engine: Any, rank: int, world_size: int) -> list[Fragment]:
    """What this rank writes to a checkpoint: every element belongs to exactly one rank.

    Stage 0 holds everything everywhere, so its parameters are shared out in equal ranges.
    """
    fragments = held_fragments(engine)
    if zero_stage(engine) != 0:
        return fragments
    owned = []
    for fragment in fragments:
        share = -(-fragment.length // world_size)
        start = min(rank * share, fragment.length)
        length = min(share, fragment.length - start)
        if length > 0:
            owned.append(fragment.narrow(start, length))
    return owned


def _fragment(engine: Any, name: str, parameter: Any) -> Fragment | None:
    stage = zero_stage(engine)
    if stage == 0:
        return Fragment(name, tuple(parameter.shape), 0, parameter.numel(), parameter, 0)
    if stage == 3:
        return _stage3_fragment(engine.optimizer, name, parameter)
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    return Fragment(
        name,
        tuple(parameter.shape),
        mapping.lp_fragment_address.start,
        mapping.lp_fragment_address.numel,
        flat_tensors(engine)[mapping.param_group_index],
        mapping.hp_fragment_address.start,
    )


def _stage3_fragment(optimizer: Any, name: str, parameter: Any) -> Fragment:
    sub_group, offset, padded = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = torch.distributed.get_rank() * padded
    length = max(0, min(padded, parameter.ds_numel - start))
    flat = optimizer.fp32_partitioned_groups_flat[sub_group]
    return Fragment(name, tuple(parameter.ds_shape), start, length, flat, offset)


def gradient_parts(engine: Any) -> list[Tensor]:
    """The reduced gradient this rank holds after the last backward pass of a step.

    Stage 0 holds all of it on every rank; the other stages hold disjoint parts (padding is 0).
    """
    stage = zero_stage(engine)
    if stage == 0:
        return [p.grad for p in engine.module.parameters() if p.grad is not None]
    if offloads(engine):
        return [flat.grad for flat in flat_tensors(engine) if flat.grad is not None]
    if uses_bf16_optimizer(engine):
        return list(engine.optimizer.fp32_groups_gradient_flat_partition)
    return [part for group in engine.optimizer.averaged_gradients.values() for part in group]


def publish_master_weights(engine: Any) -> None:
    """Copy the fp32 master weights into the weights that compute, on every rank."""
    optimizer = engine.optimizer
    stage = zero_stage(engine)
    if stage in (1, 2):
        optimizer.update_lp_params()
    elif stage == 3:
        for sub_group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(sub_group)
        # Small parameters are kept whole on every rank: gather them again.
        persistent = optimizer.persistent_parameters
        if persistent:
            persistent[0].partition(persistent)
            persistent[0].all_gather(persistent)
