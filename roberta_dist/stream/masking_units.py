"""Which units of a row are predicted, when a unit is more than a token or a row has a budget.

A unit is a run of tokens of one row that is predicted as a whole: a token or a word. Array names
end in their shape: T tokens of the batch, R rows, U units in reading order, A rows that still
draw spans, W words of a span. The twin of each function in `masking_units_torch` computes the same
integers.

What concerns a row as a whole is drawn from `draw(j)` = mix64(row key + (2³²+j+1)·φ):

    budget = floor(probability · n + u), n the row's tokens that may be predicted, u = draw(0) / 2³²
    exact  : units in the order of their bits, while tokens of the budget are left
    spans  : try t = 0, 1, ... with bits = draw(2+t)
             words  = geometric from bits >> 32; anchor = the ((bits & (2³²-1)) · n >> 32)-th such token
             span   = that many words from the anchor's word on, ended by a special token or the row;
                      a try that meets a word already taken is dropped
             decision of all its tokens = mix64(bits + φ) >> 32
    A unit longer than what is left of the budget is taken with chance left / length, by draw(1),
    and ends the row: words stay whole and the expected count is the budget.

Sources: fairseq mask_tokens_dataset.py (the budget's rounding), SpanBERT (Joshi et al. 2020, §3.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roberta_dist.corpus.words import WordTables
from roberta_dist.runtime.rng import GOLDEN, hash64

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Bits = NDArray[np.uint64]
PHI = np.array(GOLDEN, dtype=np.uint64)
HALF32 = np.array(32, dtype=np.uint64)
LOW32 = np.array((1 << 32) - 1, dtype=np.uint64)
TRIES = 64
"""Tries a row has for its spans, and as many again per 8 tokens of its budget."""


@dataclass(frozen=True)
class Units:
    """The units that may be predicted, in reading order.

    Attributes:
        start_U, length_U: first token in the batch, and tokens.
        row_U: row in the batch.
        first_R: int64 [R+1], first unit of each row.
        tokens_R: tokens of each row's units.
    """

    start_U: Ints
    length_U: Ints
    row_U: Ints
    first_R: Ints
    tokens_R: Ints


def find_units(begins_T: Bools, never_T: Bools, cu_seqlens: Ints) -> Units:
    """Units from where they begin; those that begin with a token never predicted are left out."""
    start_U = np.flatnonzero(begins_T)
    length_U = np.diff(start_U, append=len(begins_T))
    chosen = ~never_T[start_U]
    start_U, length_U = start_U[chosen], length_U[chosen]
    first_R = np.searchsorted(start_U, cu_seqlens)
    row_U = np.repeat(np.arange(len(cu_seqlens) - 1), np.diff(first_R))
    total = np.concatenate(([0], np.cumsum(length_U)))
    return Units(start_U, length_U, row_U, first_R, np.diff(total[first_R]))


def word_begins(
    words: WordTables,
    max_word_tokens: int,
    is_special_V: Bools,
    tokens_T: NDArray[np.uint16],
    cu_seqlens: Ints,
) -> Bools:
    """Where words begin: bool [T].

    At a row's start, at and after a special token, and where whitespace begins: a word is
    whitespace and the text after it, as in most tokens of a byte-level BPE. Where a token holds
    text and then whitespace, the next token begins the word. Never inside a UTF-8 character. A
    word longer than `max_word_tokens` is cut at each multiple of it, or at the next token after
    that which begins a character.
    """
    special_T = is_special_V[tokens_T]
    space_T = words.begins_with_space[tokens_T]
    space_T[1:] &= ~words.ends_with_space[tokens_T[:-1]]
    space_T[1:] |= (words.ends_with_space & ~words.only_space)[tokens_T[:-1]]
    character_T = words.begins_character[tokens_T]
    begins_T = special_T | (space_T & character_T)
    begins_T[1:] |= special_T[:-1]
    begins_T[cu_seqlens[:-1][np.diff(cu_seqlens) > 0]] = True

    index_T = np.arange(len(tokens_T))
    start_T = np.maximum.accumulate(np.where(begins_T, index_T, 0))
    # The last place before a token where its word could have been cut.
    place_T = np.maximum.accumulate(np.where(begins_T | character_T, index_T, 0))
    place_T[1:] = place_T[:-1].copy()
    multiple_T = (index_T - start_T) // max_word_tokens
    cut_T = character_T & (multiple_T > (place_T - start_T) // max_word_tokens)
    result: Bools = begins_T | cut_T
    return result


def token_bits(key_R: Bits, cu_seqlens: Ints, row_X: Ints, index_X: Ints) -> Bits:
    """The bits of single tokens, by row and index in the batch."""
    position_X = (index_X - cu_seqlens[row_X]).astype(np.uint64)
    return hash64(key_R[row_X] + (position_X + np.uint64(1)) * PHI)


def draw(key_R: Bits, number: int) -> Bits:
    """The row's random number `number`."""
    step = ((1 << 32) + number + 1) * GOLDEN & ((1 << 64) - 1)
    return hash64(key_R + np.array(step, dtype=np.uint64))


def high32(bits: Bits) -> Ints:
    """The upper half, as a number that may be multiplied."""
    return (bits >> HALF32).astype(np.int64)


def budget(units: Units, key_R: Bits, select_below: int) -> Ints:
    """Tokens to predict in each row: fairseq's probabilistic rounding."""
    return (units.tokens_R * select_below + high32(draw(key_R, 0))) >> 32


def pick_exact(units: Units, bits_U: Bits, key_R: Bits, budget_R: Ints) -> Bools:
    """The units taken in the order of their bits until the budget is spent: bool [U]."""
    order = np.lexsort((bits_U, units.row_U))
    length_U = units.length_U[order]
    total = np.concatenate(([0], np.cumsum(length_U)))
    spent_U = total[:-1] - total[units.first_R[:-1]][units.row_U]
    left_U = budget_R[units.row_U] - spent_U
    coin_U = high32(draw(key_R, 1))[units.row_U]
    picked = np.zeros(len(order), dtype=np.bool_)
    picked[order] = (left_U > 0) & ((coin_U * length_U) >> 32 < left_U)
    return picked


def pick_spans(units: Units, key_R: Bits, budget_R: Ints, span_below: Ints) -> tuple[Bools, Bits]:
    """The words of each row's spans: bool [U], and the bits that decide what becomes of them."""
    count = len(units.start_U)
    picked_U, second_U = np.zeros(count, dtype=np.bool_), np.zeros(count, dtype=np.uint64)
    unit_of = np.repeat(np.arange(count), units.length_U)
    offset_R = np.cumsum(units.tokens_R) - units.tokens_R
    end_U = _stretch_ends(units)
    coin_R = high32(draw(key_R, 1))
    left_R, tries_R = budget_R.copy(), TRIES + TRIES * budget_R // 8
    rows = np.flatnonzero(left_R > 0)
    number = 0
    while len(rows):
        bits_A = draw(key_R[rows], 2 + number)
        words_A = np.searchsorted(span_below, high32(bits_A), side="right")
        anchor_A = ((bits_A & LOW32).astype(np.int64) * units.tokens_R[rows]) >> 32
        first_A = unit_of[offset_R[rows] + anchor_A]
        unit_AW = first_A[:, None] + np.arange(len(span_below))
        inside_AW = unit_AW < np.minimum(first_A + words_A, end_U[first_A])[:, None]
        unit_AW = np.minimum(unit_AW, count - 1)
        free_A = ~(picked_U[unit_AW] & inside_AW).any(axis=1)
        inside_AW &= free_A[:, None]
        length_AW = np.where(inside_AW, units.length_U[unit_AW], 0)
        spent_AW = np.cumsum(length_AW, axis=1)
        left_AW = left_R[rows, None] - spent_AW + length_AW
        taken_AW = inside_AW & (left_AW > 0) & ((coin_R[rows, None] * length_AW) >> 32 < left_AW)
        picked_U[unit_AW[taken_AW]] = True
        second_U[unit_AW[taken_AW]] = np.repeat(hash64(bits_A + PHI), taken_AW.sum(axis=1))
        left_R[rows] -= spent_AW[:, -1]
        number += 1
        rows = rows[(left_R[rows] > 0) & (number < tries_R[rows])]
    return picked_U, second_U


def _stretch_ends(units: Units) -> Ints:
    """The unit after the last one that a span from here may hold: int64 [U]."""
    follows = (units.start_U[1:] == units.start_U[:-1] + units.length_U[:-1]) & (
        units.row_U[1:] == units.row_U[:-1]
    )
    ends = np.append(np.flatnonzero(~follows) + 1, len(units.start_U))
    return np.repeat(ends, np.diff(ends, prepend=0))


def tokens_of(start_X: Ints, length_X: Ints) -> Ints:
    """Indices in the batch of all tokens of some units."""
    before_X = np.cumsum(length_X) - length_X
    return np.repeat(start_X - before_X, length_X) + np.arange(int(length_X.sum()))
