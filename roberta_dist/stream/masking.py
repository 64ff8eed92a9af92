"""Dynamic masking as a pure function of (seed, global row, position).

For a token at `position` of global row `row`:

    bits      = mix64(mix64(key + (row+1)·φ) + (position+1)·φ)        φ = 2⁶⁴/golden ratio
    selected  = (bits >> 32) < probability · 2³², and the token is not special
    second    = mix64(bits + φ)
    decision  = second >> 32:  < mask share · 2³² → <mask>;  < (mask + random) share → random; else keep
    random id = ordinary_ids[(second & (2³¹-1)) · len(ordinary_ids) >> 31]

Integers only, so numpy here and torch in `masking_torch` agree bit for bit on any device.
Unlike fairseq (mask_tokens_dataset.py: 10⁶ streams) every row of a run has masks of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roberta_dist.config.data import MaskingConfig
from roberta_dist.corpus.manifest import SpecialTokens
from roberta_dist.runtime.rng import counter_bits, derive_key, mix64

TWO32 = 1 << 32


@dataclass(frozen=True)
class MaskRule:
    """Masking with thresholds as integers and the tokenizer's tables.

    Attributes:
        key: 64-bit key derived from the seed.
        select_below, mask_below, random_below: thresholds on 32 random bits.
        is_special_V: bool [vocab_size]; such tokens are never predicted.
        ordinary_ids: ids a random replacement is drawn from.
        mask_id: id of `<mask>`.
    """

    key: int
    select_below: int
    mask_below: int
    random_below: int
    is_special_V: NDArray[np.bool_]
    ordinary_ids: NDArray[np.int64]
    mask_id: int


def mask_rule(
    config: MaskingConfig, seed: int, purpose: str, vocab_size: int, special: SpecialTokens
) -> MaskRule:
    """The rule of one run; `purpose` ("train", "held_out") separates their random numbers."""
    is_special = np.zeros(vocab_size, dtype=np.bool_)
    is_special[[special.bos, special.pad, special.eos, special.unk, special.mask]] = True
    mask_below = round(config.mask_fraction * TWO32)
    return MaskRule(
        key=derive_key(seed, "mask", purpose),
        select_below=round(config.probability * TWO32),
        mask_below=mask_below,
        random_below=mask_below + round(config.random_fraction * TWO32),
        is_special_V=is_special,
        ordinary_ids=np.flatnonzero(~is_special),
        mask_id=special.mask,
    )


@dataclass(frozen=True)
class Masked:
    """Result of masking flat tokens.

    Attributes:
        tokens_T: the tokens with replacements written in.
        index_M: positions in T that are predicted.
        labels_M: original tokens there.
    """

    tokens_T: NDArray[np.uint16]
    index_M: NDArray[np.int64]
    labels_M: NDArray[np.uint16]


def apply_mask(
    rule: MaskRule,
    tokens_T: NDArray[np.uint16],
    row_T: NDArray[np.int64],
    position_T: NDArray[np.int64],
) -> Masked:
    """Mask flat tokens.

    Args:
        rule: thresholds and tables.
        tokens_T: token ids.
        row_T: global row of each token; a negative row is never predicted.
        position_T: position of each token inside its row.
    """
    row_key_T = counter_bits(rule.key, row_T)
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        bits_T = mix64(row_key_T + (position_T.astype(np.uint64) + np.uint64(1)) * golden)
    selected_T = (bits_T >> np.uint64(32)) < np.uint64(rule.select_below)
    selected_T &= ~rule.is_special_V[tokens_T]
    selected_T &= row_T >= 0
    index_M = np.flatnonzero(selected_T)
    with np.errstate(over="ignore"):
        second_M = mix64(bits_T[index_M] + golden)
    decision_M = second_M >> np.uint64(32)
    drawn_M = (second_M & np.uint64(0x7FFFFFFF)) * np.uint64(len(rule.ordinary_ids))
    random_M = rule.ordinary_ids[(drawn_M >> np.uint64(31)).astype(np.int64)]
    labels_M = tokens_T[index_M]
    replaced_M = np.where(
        decision_M < np.uint64(rule.mask_below),
        rule.mask_id,
        np.where(decision_M < np.uint64(rule.random_below), random_M, labels_M),
    )
    masked_T = tokens_T.copy()
    masked_T[index_M] = replaced_M.astype(tokens_T.dtype)
    return Masked(masked_T, index_M, labels_M)
