"""Bidirectional self-attention over flat tokens, by one of three kernels; the only place that pads.

T tokens of all rows · R rows · L longest row · H width · N heads · D = H / N
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roberta_dist.config.model import Attention, KernelsConfig, ModelConfig
from roberta_dist.model.blocked_attention import blocked_attention
from roberta_dist.model.fused import Key, Pieces
from roberta_dist.model.kernels import resolve_attention


def packed_tensors(name: str) -> int:
    """How many tensors the parameter `name` holds, stacked along its first dimension."""
    return 3 if name.endswith((".qkv.weight", ".qkv.bias")) else 1


def full_rows(cu_seqlens: Tensor, tokens: int, max_seqlen: int) -> bool:
    """Whether all rows have max_seqlen tokens: known from sizes, without a look at the values."""
    return tokens == (cu_seqlens.numel() - 1) * max_seqlen


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
    if full_rows(cu_seqlens, tokens, max_seqlen):
        return None, None
    rows = cu_seqlens.numel() - 1
    starts_R = cu_seqlens[:-1].long()
    lengths_R = cu_seqlens[1:].long() - starts_R
    # output_size spares a device-to-host sync.
    padding_before_R = torch.arange(rows, device=cu_seqlens.device) * max_seqlen - starts_R
    shift_T = torch.repeat_interleave(padding_before_R, lengths_R, output_size=tokens)
    slot_T = torch.arange(tokens, device=cu_seqlens.device) + shift_T
    key_mask_RL = torch.arange(max_seqlen, device=cu_seqlens.device) < lengths_R[:, None]
    return slot_T, key_mask_RL[:, None, None, :]


def padded_attention(
    qkv_TC: Tensor,
    slot_T: Tensor | None,
    key_mask_R11L: Tensor | None,
    max_seqlen: int,
    heads: int,
    p: float,
) -> Tensor:
    """torch's scaled-dot-product attention on rows padded to the longest: [T, 3H] → [T, H]."""
    width = qkv_TC.shape[1] // 3
    if slot_T is not None and key_mask_R11L is not None:
        grid = qkv_TC.new_zeros(key_mask_R11L.shape[0] * max_seqlen, 3 * width)
        qkv_TC = grid.index_copy(0, slot_T, qkv_TC)  # [R·L, 3H]
    # [R·L, 3H] → thrice [R, N, L, D]. Their gradients meet again in one write: taken out one by one,
    # each would be written three times.
    split = qkv_TC.view(-1, max_seqlen, 3, heads, width // heads).unbind(2)
    query, key, value = (part.transpose(1, 2) for part in split)
    # Padded queries attend to their row's tokens like any other, so nothing is 0/0; what they
    # compute is dropped below.
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=key_mask_R11L, dropout_p=p)
    flat = mixed.transpose(1, 2).reshape(-1, width)  # [R·L, H]
    return flat if slot_T is None else flat.index_select(0, slot_T)


def varlen_attention(
    qkv_TC: Tensor, cu_seqlens: Tensor, max_seqlen: int, heads: int, p: float
) -> Tensor:
    """torch's attention without padding: [T, 3H] → [T, H].

    On a GPU its kernels as they are, for half precision FlashAttention's, else the memory-efficient
    ones; on a CPU the same through jagged tensors, whose host work a GPU would wait for.
    """
    tokens, width = qkv_TC.shape[0], qkv_TC.shape[1] // 3
    parts = qkv_TC.view(tokens, 3, heads, width // heads).unbind(1)
    if qkv_TC.is_cuda:
        return _varlen_on_gpu(parts, cu_seqlens, max_seqlen, p).reshape(tokens, width)
    query, key, value = (
        # Its form for a CPU wants each of the three contiguous.
        torch.nested.nested_tensor_from_jagged(
            part.contiguous(), offsets=cu_seqlens.long(), min_seqlen=1, max_seqlen=max_seqlen
        ).transpose(1, 2)
        for part in parts
    )
    mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=p)
    flat: Tensor = mixed.transpose(1, 2).values()
    return flat.reshape(tokens, width)


FLASH_FROM = (8, 0)
"""Compute capability that FlashAttention's kernels need (Ampere)."""


def _varlen_on_gpu(
    parts_TND: Sequence[Tensor], cu_seqlens: Tensor, max_seqlen: int, p: float
) -> Tensor:
    """Query, key and value [T, N, D] → [T, N, D]."""
    lengths = (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, p)
    device, dtype = parts_TND[0].device, parts_TND[0].dtype
    half = dtype in (torch.float16, torch.bfloat16)
    if half and torch.cuda.get_device_capability(device) >= FLASH_FROM:
        mixed, *_ = torch.ops.aten._flash_attention_forward(*parts_TND, *lengths, False, False)
        return cast(Tensor, mixed)
    batched = (part[None] for part in parts_TND)
    mixed, *_ = torch.ops.aten._efficient_attention_forward(*batched, None, *lengths, 0, True)
    return cast(Tensor, mixed[0])


class SelfAttention(nn.Module):
    """Fused query-key-value projection, attention, output projection."""

    def __init__(self, config: ModelConfig, kernels: KernelsConfig, pieces: Pieces) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.dropout = config.attention_dropout
        self.kernels = kernels
        self.pieces = pieces
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_TH: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        slot_T: Tensor | None,
        key_mask_R11L: Tensor | None,
        key_2: Key,
    ) -> Tensor:
        """[T, H] → [T, H].

        Args:
            hidden_TH: of all rows.
            cu_seqlens: int [R+1].
            max_seqlen: L.
            slot_T: from `padding_plan`, for the padded kernel.
            key_mask_R11L: likewise.
            key_2: of the dropout; torch's kernels draw their own and only see whether it is None.
        """
        qkv = self.qkv(hidden_TH)  # [T, 3H]
        p = 0.0 if key_2 is None else self.dropout
        full = full_rows(cu_seqlens, len(hidden_TH), max_seqlen)
        kernel = resolve_attention(self.kernels, hidden_TH.device, full)
        if kernel is Attention.blocked:
            starts = cu_seqlens.tolist()
            mixed = blocked_attention(qkv, starts, self.num_heads, p, key_2, self.pieces)
        elif kernel is Attention.varlen:
            mixed = varlen_attention(qkv, cu_seqlens, max_seqlen, self.num_heads, p)
        else:
            mixed = padded_attention(qkv, slot_T, key_mask_R11L, max_seqlen, self.num_heads, p)
        output: Tensor = self.out(mixed)
        return output
