"""LAMB's arithmetic on flat tensors, without anything about layouts.

Factors, in this order: gradient scale, 1 - β₁, β₂, 1 - β₂, 1 / (1 - β₁ᵗ), 1 / √(1 - β₂ᵗ), ε, λ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 1 << 18
"""Elements that the uncompiled arithmetic handles at a time: its temporaries stay this small."""
SMALL = 1 << 16
"""Elements up to which a tensor is not worth a compiled call."""


class Part(NamedTuple):
    """A segment of a flat tensor: 1-D tensors that share a storage with others.

    Attributes:
        tensor: index of the tensor that has a trust ratio; None where none is taken.
        weight: moved in the end.
        update: holds the gradient, then u.
        first, second: moments.
    """

    tensor: int | None
    weight: Tensor
    update: Tensor
    first: Tensor
    second: Tensor


class Flat(NamedTuple):
    """What one update of a flat tensor works on.

    Attributes:
        lr: learning rate.
        factors: the scalars.
        whole: everything, as one part.
        parts: its segments.
    """

    lr: float
    factors: Tensor
    whole: Part
    parts: list[Part]


def elements_of(tensor: Tensor, offset: int, length: int) -> Tensor:
    """Elements of a contiguous tensor, flat, in its storage.

    Not a view: those remember the shape of their base, and what was compiled for bases of two
    dimensions would be compiled again for those of one.
    """
    part = tensor.detach().view(-1).narrow(0, offset, length)
    return part.new_empty(0).set_(part.untyped_storage(), part.storage_offset(), (length,), (1,))


def direction_of(weight: Tensor, gradient: Tensor, m: Tensor, v: Tensor, factors: Tensor) -> Tensor:
    """Move the moments and put u where the gradient was; returns [‖w‖², ‖u‖²], float64."""
    update = _move(weight, gradient, m, v, factors)
    return torch.stack([(weight.double() ** 2).sum(), (update.double() ** 2).sum()])


def move(weight: Tensor, gradient: Tensor, m: Tensor, v: Tensor, factors: Tensor) -> None:
    """`direction_of` without the norms."""
    _move(weight, gradient, m, v, factors)


def _move(weight: Tensor, gradient: Tensor, m: Tensor, v: Tensor, factors: Tensor) -> Tensor:
    scaled = gradient * factors[0]
    first = m + (scaled - m) * factors[1]
    second = v * factors[2] + scaled * scaled * factors[3]
    update = first * factors[4] / (second.sqrt() * factors[5] + factors[6]) + weight * factors[7]
    m.copy_(first)
    v.copy_(second)
    gradient.copy_(update)
    return update


def norms_of(parts: Sequence[Part]) -> Tensor:
    """[‖w‖², ‖u‖²] of each part, float64 [parts, 2], in few kernels."""
    tensors = [part.weight for part in parts] + [part.update for part in parts]
    norms = torch.stack(torch._foreach_norm(tensors, 2, torch.float64))
    return norms.view(2, -1).T ** 2


def direction_in_blocks(
    weight: Tensor, gradient: Tensor, m: Tensor, v: Tensor, factors: Tensor
) -> Tensor:
    """`direction_of`, a block at a time."""
    norms = torch.zeros(2, dtype=torch.float64, device=weight.device)
    for start in range(0, weight.numel(), BLOCK):
        part = slice(start, start + BLOCK)
        norms += direction_of(weight[part], gradient[part], m[part], v[part], factors)
    return norms


def plain_step(
    weights: list[Tensor],
    gradients: list[Tensor],
    first: list[Tensor],
    second: list[Tensor],
    factors: Sequence[float],
    lr: float,
) -> None:
    """The update without a trust ratio or decay of many small tensors; u stays in the gradients."""
    scale, part1, beta2, part2, correct1, correct2, eps, _ = factors
    torch._foreach_mul_(gradients, scale)
    torch._foreach_lerp_(first, gradients, part1)
    torch._foreach_mul_(second, beta2)
    torch._foreach_addcmul_(second, gradients, gradients, part2)
    roots = torch._foreach_sqrt(second)
    torch._foreach_mul_(roots, correct2)
    torch._foreach_add_(roots, eps)
    torch._foreach_copy_(gradients, first)
    torch._foreach_mul_(gradients, correct1)
    torch._foreach_div_(gradients, roots)
    torch._foreach_add_(weights, gradients, alpha=-lr)
