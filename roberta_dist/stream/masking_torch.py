"""`masking.apply_mask` on torch tensors, bit for bit, for masking on an accelerator."""

from __future__ import annotations

import torch
from torch import Tensor

from roberta_dist.config.data import MaskSelection, MaskUnit
from roberta_dist.stream.masking import MaskRule
from roberta_dist.stream.masking_units_torch import (
    PHI,
    budget,
    find_units,
    hash64,
    pick_exact,
    pick_spans,
    shift,
    signed,
    table,
    token_bits,
    tokens_of,
    word_begins,
)


def apply_mask_torch(
    rule: MaskRule, tokens_T: Tensor, cu_seqlens: Tensor, mask_row_R: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mask flat int64 tokens; returns (tokens_T, index_M, labels_M) as `apply_mask` would."""
    cu_seqlens = cu_seqlens.long()
    key_R = hash64(signed(rule.key) + (mask_row_R + 1) * PHI)
    never_T = (mask_row_R < 0).repeat_interleave(cu_seqlens.diff())
    for first, last in rule.never_runs:
        never_T |= (tokens_T >= first) & (tokens_T <= last)

    special_T = table(rule.is_special_V, tokens_T)[tokens_T]
    if rule.words is None or rule.unit is MaskUnit.token:
        begins_T = torch.ones_like(special_T)
    else:
        begins_T = word_begins(rule.words, rule.max_word_tokens, special_T, tokens_T, cu_seqlens)
    units = find_units(begins_T, never_T, cu_seqlens)
    bits_U = token_bits(key_R, cu_seqlens, units.row_U, units.start_U)
    span_second_U = None
    if rule.unit is MaskUnit.span:
        budget_R = budget(units, key_R, rule.select_below)
        picked_U, span_second_U = pick_spans(units, key_R, budget_R, rule.span_below)
    elif rule.selection is MaskSelection.exact:
        picked_U = pick_exact(units, bits_U, key_R, budget(units, key_R, rule.select_below))
    else:
        picked_U = shift(bits_U, 32) < rule.select_below

    length_P = units.length_U[picked_U]
    index_M = tokens_of(units.start_U[picked_U], length_P)
    row_M = units.row_U[picked_U].repeat_interleave(length_P)
    second_M = hash64(token_bits(key_R, cu_seqlens, row_M, index_M) + PHI)
    deciding_M = second_M
    if span_second_U is not None:
        deciding_M = span_second_U[picked_U].repeat_interleave(length_P)
    return _replace(rule, tokens_T, index_M, second_M, shift(deciding_M, 32))


def _replace(
    rule: MaskRule, tokens_T: Tensor, index_M: Tensor, second_M: Tensor, decision_M: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    ordinary = table(rule.ordinary_ids.astype("int64"), tokens_T)
    random_M = ordinary[((second_M & 0x7FFFFFFF) * len(ordinary)) >> 31]
    labels_M = tokens_T[index_M]
    replaced_M = torch.where(decision_M < rule.random_below, random_M, labels_M)
    replaced_M = torch.where(decision_M < rule.mask_below, rule.mask_id, replaced_M)
    masked_T = tokens_T.clone()
    masked_T[index_M] = replaced_M
    return masked_T, index_M, labels_M
