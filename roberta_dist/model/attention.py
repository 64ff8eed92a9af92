"""Bidirectional self-attention over flat tokens; the only place that pads.

T tokens of all rows · R rows · L longest row · H width · N heads · D = H / N
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roberta_dist.config.model import ModelConfig


def packed_tensors(name: str) -> int:
    """How many tensors the parameter `name` holds, stacked along its first dimension."""
    return 3 if name.endswith((".qkv.weight", ".qkv.bias")) else 1


def padding_plan(
    cu_seqlens: Tensor, tokens: int, max_seqlen: int
) -> tuple[Tensor | None, Tensor | None]:
    """Where each flat token lies in the padded [R, L] grid, computed once per forward.

    Args:
        cu_seqlens: int [R+1], cumulative row lengths.
        tokens: T.
        max_seqlen: L.

    Returns:
        slot_T: int64 [T], index into [R · L]; None when all rows have L tokens (a view does).
        key_mask_R11L: bool [R, 1, 1, L], True at tokens; None likewise.
    """
    rows = cu_seqlens.numel() - 1
    if tokens == rows * max_seqlen:
        return None, None
    starts_R = cu_seqlens[:-1].long()
    lengths_R = cu_seqlens[1:].long() - starts_R
    # output_size spares a device-to-host sync.
    padding_before_R = torch.arange(rows, device=cu_seqlens.device) * max_seqlen - starts_R
    shift_T = torch.repeat_interleave(padding_before_R, lengths_R, output_size=tokens)
    slot_T = torch.arange(tokens, device=cu_seqlens.device) + shift_T
    key_mask_RL = torch.arange(max_seqlen, device=cu_seqlens.device) < lengths_R[:, None]
    return slot_T, key_mask_RL[:, None, None, :]


class SelfAttention(nn.Module):
    """Fused query-key-value projection, scaled-dot-product attention, output projection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.dropout = config.attention_dropout
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_TH: Tensor,
        slot_T: Tensor | None,
        key_mask_R11L: Tensor | None,
        max_seqlen: int,
    ) -> Tensor:
        """[T, H] → [T, H]; `slot_T` and `key_mask_R11L` come from `padding_plan`."""
        qkv = self.qkv(hidden_TH)  # [T, 3H]
        if slot_T is not None and key_mask_R11L is not None:
            grid = qkv.new_zeros(key_mask_R11L.shape[0] * max_seqlen, qkv.shape[1])
            qkv = grid.index_copy(0, slot_T, qkv)  # [R·L, 3H]
        head_size = hidden_TH.shape[1] // self.num_heads
        # [R·L, 3H] → [3, R, N, L, D]
        split = qkv.view(-1, max_seqlen, 3, self.num_heads, head_size).permute(2, 0, 3, 1, 4)
        # Padded queries attend to their row's tokens like any other, so nothing is 0/0; what they
        # compute is dropped below.
        mixed = F.scaled_dot_product_attention(
            split[0],
            split[1],
            split[2],
            attn_mask=key_mask_R11L,
            dropout_p=self.dropout if self.training else 0.0,
        )
        flat = mixed.transpose(1, 2).reshape(-1, hidden_TH.shape[1])  # [R·L, H]
        if slot_T is not None:
            flat = flat.index_select(0, slot_T)  # [T, H]
        output: Tensor = self.out(flat)
        return output
