"""The default of masking, each token by its own chance, made as cheap as drawing random numbers.

Rows are hashed in place by chunks that stay in the cache, with few numpy calls; the last step of
the hash, and all that follows, is done for selected tokens only.
"""

from __future__ import annotations

import functools
import itertools
import operator

import numpy as np
from numpy.typing import NDArray

from roberta_dist.runtime.rng import GOLDEN, stir64

CHUNK = 12_288
"""Tokens hashed at a time: 96 KiB of state and as much scratch."""
PHI = np.array(GOLDEN, dtype=np.uint64)
SHIFT31 = np.array(31, dtype=np.uint64)


def pick_by_chance(
    key_R: NDArray[np.uint64],
    cu_seqlens: NDArray[np.int64],
    never_T: NDArray[np.bool_],
    select_below: int,
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Indices and bits of the selected tokens; `never_T` are left out."""
    starts_R = cu_seqlens[:-1]
    lengths_R = cu_seqlens[1:] - starts_R
    chunks = -(-len(never_T) // CHUNK)
    step = max(1, -(-len(starts_R) // max(1, chunks)))
    bounds = [*starts_R[::step].tolist(), len(never_T)]
    longest = max(map(operator.sub, bounds[1:], bounds), default=0)
    # A row's first counter comes down by its start in the chunk, so that one ramp serves all rows.
    inside_R = starts_R - starts_R[::step].repeat(step)[: len(starts_R)]
    hash_T = (key_R - inside_R.view(np.uint64) * PHI).repeat(lengths_R)
    ramp = _ramp(1 << longest.bit_length())
    scratch = np.empty(longest, dtype=np.uint64)
    for start, end in itertools.pairwise(bounds):
        z = hash_T[start:end]
        z += ramp[: end - start]
        stir64(z, scratch[: end - start])
    # Without its last step the hash has 31 of the 32 bits that decide, which is all an even
    # threshold asks for.
    likely_T = hash_T < np.array(((select_below + 1) >> 1) << 33, dtype=np.uint64)
    np.greater(likely_T, never_T, likely_T)
    index_M = likely_T.nonzero()[0]
    bits_M = hash_T.take(index_M)
    bits_M ^= bits_M >> SHIFT31
    if select_below % 2:
        selected_M = bits_M < np.array(select_below << 32, dtype=np.uint64)
        return index_M[selected_M], bits_M[selected_M]
    return index_M, bits_M


@functools.lru_cache(maxsize=4)
def _ramp(length: int) -> NDArray[np.uint64]:
    """φ, 2φ, 3φ, ... modulo 2⁶⁴; callers only read it."""
    return np.arange(1, length + 1, dtype=np.uint64) * PHI
