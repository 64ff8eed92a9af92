"""`masking.apply_mask` on torch tensors, bit for bit, for masking on an accelerator.

torch has no unsigned 64-bit arithmetic: int64 wraps the same way for + and ·, and a logical right
shift is an arithmetic one with the sign bits cleared.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from roberta_dist.runtime.rng import GOLDEN, MIX1, MIX2
from roberta_dist.stream.masking import MaskRule


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift(values: Tensor, bits: int) -> Tensor:
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _mix64(values: Tensor) -> Tensor:
    z = (values ^ _shift(values, 30)) * _signed(MIX1)
    z = (z ^ _shift(z, 27)) * _signed(MIX2)
    return z ^ _shift(z, 31)


def apply_mask_torch(
    rule: MaskRule, tokens_T: Tensor, row_T: Tensor, position_T: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mask flat int64 tokens; returns (tokens_T, index_M, labels_M) as `apply_mask` would."""
    golden = _signed(GOLDEN)
    row_key_T = _mix64(_signed(rule.key) + (row_T + 1) * golden)
    bits_T = _mix64(row_key_T + (position_T + 1) * golden)
    special_V = torch.from_numpy(np.asarray(rule.is_special_V)).to(tokens_T.device)
    selected_T = (_shift(bits_T, 32) < rule.select_below) & ~special_V[tokens_T] & (row_T >= 0)
    index_M = selected_T.nonzero().squeeze(1)
    second_M = _mix64(bits_T[index_M] + golden)
    decision_M = _shift(second_M, 32)
    ordinary = torch.from_numpy(np.asarray(rule.ordinary_ids)).to(tokens_T.device)
    random_M = ordinary[((second_M & 0x7FFFFFFF) * len(ordinary)) >> 31]
    labels_M = tokens_T[index_M]
    replaced_M = torch.where(decision_M < rule.random_below, random_M, labels_M)
    replaced_M = torch.where(decision_M < rule.mask_below, rule.mask_id, replaced_M)
    masked_T = tokens_T.clone()
    masked_T[index_M] = replaced_M
    return masked_T, index_M, labels_M
