"""`masking_units` on torch tensors, the same integers on any device.

torch has no unsigned 64-bit arithmetic: int64 wraps the same way for + and ·, a logical right
shift is an arithmetic one with the sign bits cleared, and unsigned order is signed order with the
sign bit flipped. The docstrings of `masking_units` hold for the functions of the same name here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from roberta_dist.corpus.words import WordTables
from roberta_dist.runtime.rng import GOLDEN, MIX1, MIX2
from roberta_dist.stream.masking_units import TRIES


def signed(value: int) -> int:
    """A 64-bit pattern as int64."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


PHI = signed(GOLDEN)


def shift(values: Tensor, bits: int) -> Tensor:
    """Logical right shift."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def hash64(values: Tensor) -> Tensor:
    """`runtime.rng.mix64`."""
    z = (values ^ shift(values, 30)) * signed(MIX1)
    z = (z ^ shift(z, 27)) * signed(MIX2)
    return z ^ shift(z, 31)


def table(values: NDArray[np.bool_] | NDArray[np.int64], like: Tensor) -> Tensor:
    """A table of the rule, where `like` is."""
    return torch.from_numpy(np.array(values)).to(like.device)


@dataclass(frozen=True)
class Units:
    """As `masking_units.Units`."""

    start_U: Tensor
    length_U: Tensor
    row_U: Tensor
    first_R: Tensor
    tokens_R: Tensor


def _indices(mask: Tensor) -> Tensor:
    return mask.nonzero().squeeze(1)


def _running_total(values: Tensor) -> Tensor:
    """Sums of the first 0, 1, 2, ... values."""
    return torch.cat((values.new_zeros(1), values.cumsum(0)))


def _running_max(values: Tensor) -> Tensor:
    return values.cummax(0).values if len(values) else values


def find_units(begins_T: Tensor, never_T: Tensor, cu_seqlens: Tensor) -> Units:
    """Units from where they begin."""
    start_U = _indices(begins_T)
    length_U = torch.diff(start_U, append=start_U.new_tensor([len(begins_T)]))
    chosen = ~never_T[start_U]
    start_U, length_U = start_U[chosen], length_U[chosen]
    first_R = torch.searchsorted(start_U, cu_seqlens)
    row_U = torch.arange(len(cu_seqlens) - 1, device=start_U.device).repeat_interleave(
        first_R.diff()
    )
    return Units(start_U, length_U, row_U, first_R, _running_total(length_U)[first_R].diff())


def word_begins(
    words: WordTables, max_word_tokens: int, special_T: Tensor, tokens_T: Tensor, cu_seqlens: Tensor
) -> Tensor:
    """Where words begin: bool [T]."""
    space_T = table(words.begins_with_space, tokens_T)[tokens_T]
    space_T[1:] &= ~table(words.ends_with_space, tokens_T)[tokens_T[:-1]]
    space_T[1:] |= table(words.ends_with_space & ~words.only_space, tokens_T)[tokens_T[:-1]]
    character_T = table(words.begins_character, tokens_T)[tokens_T]
    begins_T = special_T | (space_T & character_T)
    begins_T[1:] |= special_T[:-1]
    begins_T[cu_seqlens[:-1][cu_seqlens.diff() > 0]] = True

    index_T = torch.arange(len(tokens_T), device=tokens_T.device)
    start_T = _running_max(torch.where(begins_T, index_T, 0))
    place_T = _running_max(torch.where(begins_T | character_T, index_T, 0))
    place_T[1:] = place_T[:-1].clone()
    multiple_T = (index_T - start_T) // max_word_tokens
    return begins_T | (character_T & (multiple_T > (place_T - start_T) // max_word_tokens))


def token_bits(key_R: Tensor, cu_seqlens: Tensor, row_X: Tensor, index_X: Tensor) -> Tensor:
    """The bits of single tokens."""
    return hash64(key_R[row_X] + (index_X - cu_seqlens[row_X] + 1) * PHI)


def draw(key_R: Tensor, number: int) -> Tensor:
    """The row's random number `number`."""
    return hash64(key_R + signed(((1 << 32) + number + 1) * GOLDEN))


def budget(units: Units, key_R: Tensor, select_below: int) -> Tensor:
    """Tokens to predict in each row."""
    return (units.tokens_R * select_below + shift(draw(key_R, 0), 32)) >> 32


def pick_exact(units: Units, bits_U: Tensor, key_R: Tensor, budget_R: Tensor) -> Tensor:
    """The units taken in the order of their bits: bool [U]."""
    by_bits = torch.sort(bits_U ^ signed(1 << 63), stable=True).indices
    order = by_bits[torch.sort(units.row_U[by_bits], stable=True).indices]
    length_U = units.length_U[order]
    total = _running_total(length_U)
    spent_U = total[:-1] - total[units.first_R[:-1]][units.row_U]
    left_U = budget_R[units.row_U] - spent_U
    coin_U = shift(draw(key_R, 1), 32)[units.row_U]
    picked = torch.zeros_like(bits_U, dtype=torch.bool)
    picked[order] = (left_U > 0) & ((coin_U * length_U) >> 32 < left_U)
    return picked


def pick_spans(
    units: Units, key_R: Tensor, budget_R: Tensor, span_below: NDArray[np.int64]
) -> tuple[Tensor, Tensor]:
    """The words of each row's spans: bool [U], and the bits that decide for them."""
    second_U = torch.zeros_like(units.start_U)
    picked_U = torch.zeros_like(second_U, dtype=torch.bool)
    count, device = len(second_U), second_U.device
    unit_of = torch.arange(count, device=device).repeat_interleave(units.length_U)
    offset_R = units.tokens_R.cumsum(0) - units.tokens_R
    end_U = _stretch_ends(units)
    coin_R = shift(draw(key_R, 1), 32)
    below = table(span_below, second_U)
    left_R, tries_R = budget_R.clone(), TRIES + TRIES * budget_R // 8
    rows = _indices(left_R > 0)
    number = 0
    while len(rows):
        bits_A = draw(key_R[rows], 2 + number)
        words_A = torch.searchsorted(below, shift(bits_A, 32), right=True)
        anchor_A = ((bits_A & ((1 << 32) - 1)) * units.tokens_R[rows]) >> 32
        first_A = unit_of[offset_R[rows] + anchor_A]
        unit_AW = first_A[:, None] + torch.arange(len(below), device=device)
        inside_AW = unit_AW < torch.minimum(first_A + words_A, end_U[first_A])[:, None]
        unit_AW = unit_AW.clamp(max=count - 1)
        inside_AW &= ~(picked_U[unit_AW] & inside_AW).any(dim=1)[:, None]
        length_AW = torch.where(inside_AW, units.length_U[unit_AW], 0)
        spent_AW = length_AW.cumsum(1)
        left_AW = left_R[rows, None] - spent_AW + length_AW
        taken_AW = inside_AW & (left_AW > 0) & ((coin_R[rows, None] * length_AW) >> 32 < left_AW)
        picked_U[unit_AW[taken_AW]] = True
        second_A = hash64(bits_A + PHI)
        second_U[unit_AW[taken_AW]] = second_A.repeat_interleave(taken_AW.sum(dim=1))
        left_R[rows] -= spent_AW[:, -1]
        number += 1
        rows = rows[(left_R[rows] > 0) & (number < tries_R[rows])]
    return picked_U, second_U


def _stretch_ends(units: Units) -> Tensor:
    follows = (units.start_U[1:] == units.start_U[:-1] + units.length_U[:-1]) & (
        units.row_U[1:] == units.row_U[:-1]
    )
    last = units.start_U.new_tensor([len(units.start_U)])
    ends = torch.cat((_indices(~follows) + 1, last))
    return ends.repeat_interleave(torch.diff(ends, prepend=ends.new_zeros(1)))


def tokens_of(start_X: Tensor, length_X: Tensor) -> Tensor:
    """Indices in the batch of all tokens of some units."""
    first_X = start_X - length_X.cumsum(0) + length_X
    first_M = first_X.repeat_interleave(length_X)
    return first_M + torch.arange(len(first_M), device=first_M.device)
