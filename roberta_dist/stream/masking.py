"""Masking as a pure function of (seed, mask row, position).

The mask row is the row's global number where masking is dynamic; where it is static the caller
gives a number that repeats. For a token at `position` of it:

    row key   = mix64(key + (row+1)·φ)                                φ = 2⁶⁴/golden ratio
    bits      = mix64(row key + (position+1)·φ)
    selected  = (bits >> 32) < probability · 2³², and the token may be predicted
    second    = mix64(bits + φ)
    decision  = second >> 32:  < mask share · 2³² → <mask>;  < (mask + random) share → random; else keep
    random id = ordinary_ids[(second & (2³¹-1)) · len(ordinary_ids) >> 31]

A word is selected by the bits of its first token; its tokens are then decided one by one, as in
BERT. What concerns a row as a whole (an exact budget, the tries for spans) is drawn at positions
from 2³² on, where no token is: see `masking_units`.

Integers only, so numpy here and torch in `masking_torch` agree bit for bit on any device.
Unlike fairseq (mask_tokens_dataset.py: 10⁶ streams) every row of a run has masks of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roberta_dist.config.data import MaskingConfig, MaskSelection, MaskUnit
from roberta_dist.corpus.manifest import SpecialTokens
from roberta_dist.corpus.words import WordTables
from roberta_dist.runtime.rng import GOLDEN, derive_key, hash64
from roberta_dist.stream.masking_tokens import pick_by_chance
from roberta_dist.stream.masking_units import (
    Bits,
    Bools,
    Ints,
    budget,
    find_units,
    pick_exact,
    pick_spans,
    token_bits,
    tokens_of,
    word_begins,
)

TWO32 = 1 << 32
ONE, PHI, SHIFT31, SHIFT32, LOW31 = (
    np.array(value, dtype=np.uint64) for value in (1, GOLDEN, 31, 32, (1 << 31) - 1)
)


@dataclass(frozen=True)
class MaskRule:
    """Masking with thresholds as integers and the tokenizer's tables.

    Attributes:
        key: 64-bit key derived from the seed.
        unit, selection: what is predicted as a whole, and how many of them.
        select_below, mask_below, random_below: thresholds on 32 random bits.
        is_special_V: bool [vocab_size]; such tokens end words, and are never drawn.
        never_runs: (first, last) of consecutive ids that are never predicted.
        ordinary_ids: uint16, what a random replacement is drawn from.
        mask_id: id of `<mask>`.
        words: where words begin; None under unit=token.
        max_word_tokens: longer runs without whitespace are cut.
        span_below: int64 [max_span] from 0; a span has as many words as entries ≤ 32 random bits.
    """

    key: int
    unit: MaskUnit
    selection: MaskSelection
    select_below: int
    mask_below: int
    random_below: int
    is_special_V: Bools
    never_runs: tuple[tuple[int, int], ...]
    ordinary_ids: NDArray[np.uint16]
    mask_id: int
    words: WordTables | None
    max_word_tokens: int
    span_below: Ints


def mask_rule(
    config: MaskingConfig,
    seed: int,
    purpose: str,
    vocab_size: int,
    special: SpecialTokens,
    words: WordTables | None = None,
) -> MaskRule:
    """The rule of one run; `purpose` ("train", "held_out") separates their random numbers.

    Raises:
        ValueError: unit is whole_word or span and `words` is missing or of another vocabulary.
    """
    special_ids = sorted({special.bos, special.pad, special.eos, special.unk, special.mask})
    is_special = np.zeros(vocab_size, dtype=np.bool_)
    is_special[special_ids] = True
    never = sorted({special.pad, special.mask}) if config.mask_specials else special_ids
    if config.unit is not MaskUnit.token and (
        words is None or len(words.begins_character) != vocab_size
    ):
        raise ValueError(f"masking.unit={config.unit.value} needs the tokenizer's word tables")
    mask_below = round(config.mask_fraction * TWO32)
    # SpanBERT: chances p(1-p)^(k-1) of k words, cut at max_span and renormalised.
    chances = config.span_p * (1 - config.span_p) ** np.arange(config.max_span)
    shares = np.cumsum(chances)[:-1] / chances.sum()
    return MaskRule(
        key=derive_key(seed, "mask", purpose),
        unit=config.unit,
        selection=config.selection,
        select_below=min(round(config.probability * TWO32), TWO32 - 2),  # so that 64 bits hold it
        mask_below=mask_below,
        random_below=mask_below + round(config.random_fraction * TWO32),
        is_special_V=is_special,
        never_runs=_runs(never),
        ordinary_ids=np.flatnonzero(~is_special).astype(np.uint16),
        mask_id=special.mask,
        words=words,
        max_word_tokens=config.max_word_tokens,
        span_below=np.concatenate(([0], np.rint(shares * TWO32))).astype(np.int64),
    )


def _runs(ids: list[int]) -> tuple[tuple[int, int], ...]:
    """Ascending ids as (first, last) of consecutive ones."""
    firsts = [number for number in ids if number - 1 not in ids]
    lasts = [number for number in ids if number + 1 not in ids]
    return tuple(zip(firsts, lasts, strict=True))


@dataclass(frozen=True)
class Masked:
    """Result of masking flat tokens.

    Attributes:
        tokens_T: the tokens with replacements written in.
        index_M: positions in T that are predicted, ascending.
        labels_M: original tokens there.
    """

    tokens_T: NDArray[np.uint16]
    index_M: Ints
    labels_M: NDArray[np.uint16]


def apply_mask(
    rule: MaskRule, tokens_T: NDArray[np.uint16], cu_seqlens: Ints, mask_row_R: Ints
) -> Masked:
    """Mask flat tokens; what a row gets does not depend on the other rows.

    Args:
        rule: thresholds and tables.
        tokens_T: token ids of R rows, one row after another.
        cu_seqlens: [R+1] where each row starts, and T.
        mask_row_R: each row's key; a negative row is never predicted.
    """
    cu_seqlens = np.asarray(cu_seqlens, dtype=np.int64)
    key_R = mask_row_R.astype(np.uint64)
    key_R += ONE
    key_R *= PHI
    key_R += np.array(rule.key, dtype=np.uint64)
    hash64(key_R)
    never_T = _never_predicted(rule, tokens_T, cu_seqlens, mask_row_R)
    if rule.unit is MaskUnit.token and rule.selection is MaskSelection.bernoulli:
        index_M, bits_M = pick_by_chance(key_R, cu_seqlens, never_T, rule.select_below)
        return _replace(rule, tokens_T, index_M, bits_M, None)
    return _replace(rule, tokens_T, *_pick_units(rule, tokens_T, never_T, cu_seqlens, key_R))


def _never_predicted(
    rule: MaskRule, tokens_T: NDArray[np.uint16], cu_seqlens: Ints, mask_row_R: Ints
) -> Bools:
    """Tokens that may not be predicted, by their id or because their row does not count."""
    # A comparison or two per run of ids is several times faster than a table of the vocabulary.
    never_T = np.zeros(len(tokens_T), dtype=np.bool_)
    for first, last in rule.never_runs:
        if first == last:
            never_T |= tokens_T == first
        elif first == 0:
            never_T |= tokens_T <= last
        else:
            never_T |= (tokens_T >= first) & (tokens_T <= last)
    if mask_row_R.min(initial=0) < 0:
        never_T |= np.repeat(mask_row_R < 0, np.diff(cu_seqlens))
    return never_T


def _pick_units(
    rule: MaskRule, tokens_T: NDArray[np.uint16], never_T: Bools, cu_seqlens: Ints, key_R: Bits
) -> tuple[Ints, Bits, Bits | None]:
    """Index and bits of each predicted token; for spans also the bits that decide for it."""
    if rule.words is None or rule.unit is MaskUnit.token:
        begins_T = np.ones(len(tokens_T), dtype=np.bool_)
    else:
        begins_T = word_begins(
            rule.words, rule.max_word_tokens, rule.is_special_V, tokens_T, cu_seqlens
        )
    units = find_units(begins_T, never_T, cu_seqlens)
    budget_R = budget(units, key_R, rule.select_below)
    span_second_U = None
    if rule.unit is MaskUnit.span:
        picked_U, span_second_U = pick_spans(units, key_R, budget_R, rule.span_below)
    else:
        bits_U = token_bits(key_R, cu_seqlens, units.row_U, units.start_U)
        if rule.selection is MaskSelection.exact:
            picked_U = pick_exact(units, bits_U, key_R, budget_R)
        else:
            picked_U = bits_U >> SHIFT32 < np.uint64(rule.select_below)
    length_P = units.length_U[picked_U]
    index_M = tokens_of(units.start_U[picked_U], length_P)
    bits_M = token_bits(key_R, cu_seqlens, np.repeat(units.row_U[picked_U], length_P), index_M)
    if span_second_U is None:
        return index_M, bits_M, None
    return index_M, bits_M, np.repeat(span_second_U[picked_U], length_P)


def _replace(
    rule: MaskRule,
    tokens_T: NDArray[np.uint16],
    index_M: Ints,
    bits_M: Bits,
    deciding_M: Bits | None,
) -> Masked:
    """Write `<mask>`, a random token or nothing over each predicted token."""
    second_M = hash64(bits_M + PHI)
    decision_M = (second_M if deciding_M is None else deciding_M) >> SHIFT32
    labels_M = tokens_T.take(index_M)
    replaced_M = np.full(len(index_M), rule.mask_id, dtype=tokens_T.dtype)
    other = (decision_M >= np.array(rule.mask_below, dtype=np.uint64)).nonzero()[0]
    drawn = second_M.take(other)
    drawn &= LOW31
    drawn *= np.array(len(rule.ordinary_ids), dtype=np.uint64)
    drawn >>= SHIFT31
    random = rule.ordinary_ids.take(drawn.view(np.int64))
    is_random = decision_M.take(other) < np.array(rule.random_below, dtype=np.uint64)
    replaced_M[other] = np.where(is_random, random, labels_M.take(other))
    masked_T = tokens_T.copy()
    masked_T[index_M] = replaced_M
    return Masked(masked_T, index_M, labels_M)
