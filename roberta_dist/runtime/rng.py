"""Counter-based random numbers: a value is a pure function of its key, never of call order.

splitmix64 (Steele, Lea, Flood 2014): state advances by the golden-ratio increment, the output is
the finaliser below. All arithmetic is modulo 2**64 on numpy uint64.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

GOLDEN = 0x9E3779B97F4A7C15
MIX1 = 0xBF58476D1CE4E5B9
MIX2 = 0x94D049BB133111EB
_U64 = (1 << 64) - 1
# Arrays without dimensions: numpy takes them faster than scalars, which shows on short arrays.
_SHIFT30, _SHIFT27, _SHIFT31 = (np.array(bits, dtype=np.uint64) for bits in (30, 27, 31))
_FACTOR1, _FACTOR2 = (np.array(factor, dtype=np.uint64) for factor in (MIX1, MIX2))


def mix64(values: ArrayLike) -> NDArray[np.uint64]:
    """The splitmix64 finaliser, elementwise."""
    z = np.asarray(values, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(MIX1)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(MIX2)
    result: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return result


def stir64(z: NDArray[np.uint64], scratch: NDArray[np.uint64]) -> None:
    """`mix64` in place, but for its last `z ^ (z >> 31)`, which leaves the top 31 bits alone.

    For loops over arrays that stay in the processor's cache: no array is allocated.

    Args:
        z: the values, overwritten.
        scratch: as long as `z`, overwritten.
    """
    np.right_shift(z, _SHIFT30, scratch)
    np.bitwise_xor(z, scratch, z)
    np.multiply(z, _FACTOR1, z)
    np.right_shift(z, _SHIFT27, scratch)
    np.bitwise_xor(z, scratch, z)
    np.multiply(z, _FACTOR2, z)


def hash64(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`mix64` of an array, in place; returns it."""
    stir64(z, np.empty_like(z))
    z ^= z >> _SHIFT31
    return z


def _mix_int(z: int) -> int:
    z = ((z ^ (z >> 30)) * MIX1) & _U64
    z = ((z ^ (z >> 27)) * MIX2) & _U64
    return z ^ (z >> 31)


def derive_key(*parts: int | str) -> int:
    """One 64-bit key from a tuple of numbers and names; every part changes every bit.

    Example: `derive_key(seed, "mask")` and `derive_key(seed, "order", corpus, lane, epoch)`.
    """
    key = 0
    for part in parts:
        if isinstance(part, str):
            part = int.from_bytes(hashlib.sha256(part.encode()).digest()[:8], "little")
        key = _mix_int((key + GOLDEN + _mix_int(part & _U64)) & _U64)
    return key


def counter_bits(key: int, counters: ArrayLike) -> NDArray[np.uint64]:
    """64 random bits for each counter under `key`."""
    with np.errstate(over="ignore"):
        state = np.uint64(key) + (
            np.asarray(counters).astype(np.uint64) + np.uint64(1)
        ) * np.uint64(GOLDEN)
    return mix64(state)


def permutation(key: int, size: int) -> NDArray[np.int64]:
    """A random permutation of `range(size)`: the order of the counters' bits under `key`.

    64-bit ties (chance size²/2⁶⁵) fall back to the smaller index, so the result stays pure.
    """
    return np.argsort(counter_bits(key, np.arange(size)), kind="stable").astype(np.int64)
