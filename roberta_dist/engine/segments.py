"""What LAMB must know of ZeRO's layout: which part of which tensor lies where on this rank."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from roberta_dist.engine.layout import (
    Fragment,
    flat_tensors,
    held_fragments,
    whole_shape,
    zero_stage,
)
from roberta_dist.model.attention import packed_tensors
from roberta_dist.optim.lamb import Lamb, Segment
from roberta_dist.runtime.dist import all_sum


def _parts(name: str, split_qkv: bool) -> int:
    return packed_tensors(name) if split_qkv else 1


def tensor_names(engine: Any, split_qkv: bool = True) -> list[str]:
    """Name of every tensor that has a norm of its own; a fused projection counts as its three."""
    return [
        name if parts == 1 else f"{name}[{part}]"
        for name, _ in engine.module.named_parameters()
        for parts in [_parts(name, split_qkv)]
        for part in range(parts)
    ]


def tensor_segments(engine: Any, split_qkv: bool = True) -> dict[Tensor, list[Segment]]:
    """Flat tensor → its parts on this rank, by index into `tensor_names`; none where it is padding."""
    first_index, elements = {}, {}
    index = 0
    for name, parameter in engine.module.named_parameters():
        first_index[name] = index
        elements[name] = math.prod(whole_shape(parameter)) // _parts(name, split_qkv)
        index += _parts(name, split_qkv)
    segments: dict[Tensor, list[Segment]] = {flat: [] for flat in flat_tensors(engine)}
    for fragment in held_fragments(engine):
        segments[fragment.flat] += _cut(
            fragment, first_index[fragment.name], elements[fragment.name]
        )
    return segments


def _cut(fragment: Fragment, first_index: int, elements: int) -> list[Segment]:
    """The fragment's parts of tensors that have `elements` elements each."""
    segments = []
    start, end = fragment.start, fragment.start + fragment.length
    while start < end:
        part = start // elements
        stop = min(end, (part + 1) * elements)
        offset = fragment.offset + start - fragment.start
        segments.append(Segment(first_index + part, offset, stop - start))
        start = stop
    return segments


def bind_lamb(engine: Any, optimizer: Lamb, device: torch.device, split_qkv: bool = True) -> None:
    """Make LAMB's trust ratios those of the model's tensors at any stage and world size.

    Args:
        engine: DeepSpeed's, initialised.
        optimizer: the one it was initialised with.
        device: where collectives run; with offload the norms are elsewhere.
        split_qkv: `optim.split_qkv`.
    """
    replicated = zero_stage(engine) == 0

    def over_ranks(norms: Tensor) -> Tensor:
        return norms if replicated else all_sum(norms.to(device))

    segments: dict[Tensor, list[Segment]] = tensor_segments(engine, split_qkv)
    optimizer.bind(segments, len(tensor_names(engine, split_qkv)), over_ranks)
