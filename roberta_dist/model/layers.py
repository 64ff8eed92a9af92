"""Embeddings and the post-LayerNorm transformer layer.

T tokens of all rows · M predicted tokens · H width · V vocabulary, padded to a multiple of 64
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roberta_dist.config.model import ModelConfig, padded_vocabulary
from roberta_dist.model.attention import SelfAttention

PAD_ROW = 1
"""Row of `<pad>` in both embedding tables (RoBERTa's `padding_idx`): zero, never looked up."""
POSITION_OFFSET = PAD_ROW + 1
"""Row of a row's first token in the position table."""


class Vocabulary(nn.Module):
    """The tied table: looks tokens up on the way in, scores them on the way out.

    One module with two calls, because ZeRO-3 gathers weights when the module that owns them is
    called.
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        rows = padded_vocabulary(vocab_size)
        self.weight = nn.Parameter(torch.empty(rows, config.hidden_size))
        self.bias = nn.Parameter(torch.empty(rows))

    def forward(self, inputs: Tensor, decode: bool = False) -> Tensor:
        """Token ids [T] → [T, H]; with `decode`, features [M, H] → logits [M, V]."""
        if decode:
            return F.linear(inputs, self.weight, self.bias)
        return F.embedding(inputs, self.weight, padding_idx=PAD_ROW)


class Positions(nn.Module):
    """Learned positions: position p of a row is row p + 2 of the table."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        rows = config.max_positions + POSITION_OFFSET
        self.weight = nn.Parameter(torch.empty(rows, config.hidden_size))

    def forward(self, positions_T: Tensor) -> Tensor:
        """0-based positions [T] → [T, H]."""
        return F.embedding(positions_T + POSITION_OFFSET, self.weight)


class Layer(nn.Module):
    """Attention and feed-forward, each followed by dropout, residual sum and LayerNorm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.ffn_in = nn.Linear(width, config.ffn_size)
        self.ffn_out = nn.Linear(config.ffn_size, width)
        self.ffn_norm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        hidden_TH: Tensor,
        slot_T: Tensor | None,
        key_mask_R11L: Tensor | None,
        max_seqlen: int,
    ) -> Tensor:
        """[T, H] → [T, H]."""
        attended = self.attention(hidden_TH, slot_T, key_mask_R11L, max_seqlen)
        hidden_TH = self.attention_norm(hidden_TH + self.dropout(attended))
        expanded = F.gelu(self.ffn_in(hidden_TH))  # erf, not the tanh approximation
        output: Tensor = self.ffn_norm(hidden_TH + self.dropout(self.ffn_out(expanded)))
        return output
