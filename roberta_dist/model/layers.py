"""Embeddings and the post-LayerNorm transformer layer.

T tokens of all rows · M predicted tokens · H width · V vocabulary, padded to a multiple of 64
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roberta_dist.config.model import (
    CrossEntropy,
    KernelsConfig,
    ModelConfig,
    padded_vocabulary,
)
from roberta_dist.model.attention import SelfAttention
from roberta_dist.model.fused import Key, Pieces
from roberta_dist.model.loss import linear_cross_entropy_sum

PAD_ROW = 1
"""Row of `<pad>` in both embedding tables (RoBERTa's `padding_idx`): zero, never looked up."""
POSITION_OFFSET = PAD_ROW + 1
"""Row of a row's first token in the position table."""


class Vocabulary(nn.Module):
    """The tied table: looks tokens up on the way in, scores them on the way out.

    One module with all its calls, because ZeRO-3 gathers weights when the module that owns them is
    called.
    """

    def __init__(
        self, config: ModelConfig, vocab_size: int, cross_entropy: CrossEntropy, pieces: Pieces
    ) -> None:
        super().__init__()
        rows = padded_vocabulary(vocab_size)
        self.pieces = pieces
        self.vocab_size = vocab_size
        self.cross_entropy = cross_entropy
        self.weight = nn.Parameter(torch.empty(rows, config.hidden_size))
        self.bias = nn.Parameter(torch.empty(rows))

    def forward(
        self, inputs: Tensor, decode: bool = False, labels_M: Tensor | None = None
    ) -> Tensor:
        """Token ids [T] → [T, H]; with `decode`, features [M, H] → logits [M, V], or with `labels_M`
        straight to Σ cross-entropy, a scalar."""
        if labels_M is not None:
            labels = (labels_M, self.vocab_size)
            how = (self.cross_entropy, self.pieces)
            return linear_cross_entropy_sum(inputs, self.weight, self.bias, *labels, *how)
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


class NormDropout(nn.LayerNorm):
    """LayerNorm, then dropout."""

    def __init__(self, config: ModelConfig, pieces: Pieces) -> None:
        super().__init__(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = config.dropout
        self.pieces = pieces

    def forward(self, values_TH: Tensor, key_2: Key) -> Tensor:  # type: ignore[override]
        """[T, H] → [T, H]; without a key nothing is dropped."""
        return self.pieces.norm_dropout(
            values_TH, self.weight, self.bias, self.eps, self.dropout, key_2
        )


class ResidualNorm(nn.LayerNorm):
    """LayerNorm of the residual plus what a branch adds to it after dropout."""

    def __init__(self, config: ModelConfig, pieces: Pieces) -> None:
        super().__init__(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = config.dropout
        self.pieces = pieces

    def forward(  # type: ignore[override]
        self, residual_TH: Tensor, branch_TH: Tensor, key_2: Key
    ) -> Tensor:
        """[T, H], [T, H] → [T, H]; without a key nothing is dropped."""
        return self.pieces.residual_norm(
            residual_TH, branch_TH, self.weight, self.bias, self.eps, self.dropout, key_2
        )


class LinearGelu(nn.Linear):
    """Linear layer with GELU, whose bias is added on the way."""

    def __init__(self, in_features: int, out_features: int, pieces: Pieces) -> None:
        super().__init__(in_features, out_features)
        self.pieces = pieces

    def forward(self, input: Tensor) -> Tensor:
        """[T, in] → [T, out]."""
        return self.pieces.bias_gelu(F.linear(input, self.weight), self.bias)


DROPOUTS = 3
"""Dropouts of a layer: attention weights, attention output, feed-forward output."""


class Layer(nn.Module):
    """Attention and feed-forward, each followed by dropout, residual sum and LayerNorm."""

    def __init__(self, config: ModelConfig, kernels: KernelsConfig, pieces: Pieces) -> None:
        super().__init__()
        width = config.hidden_size
        self.attention = SelfAttention(config, kernels, pieces)
        self.attention_norm = ResidualNorm(config, pieces)
        self.ffn_in = LinearGelu(width, config.ffn_size, pieces)
        self.ffn_out = nn.Linear(config.ffn_size, width)
        self.ffn_norm = ResidualNorm(config, pieces)

    def forward(
        self,
        hidden_TH: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        slot_T: Tensor | None,
        key_mask_R11L: Tensor | None,
        keys_32: Tensor | None,
    ) -> Tensor:
        """[T, H] → [T, H]; `keys_32` from `dropout.draw_keys`, None does not drop."""
        keys = (None, None, None) if keys_32 is None else keys_32.unbind()
        attended = self.attention(hidden_TH, cu_seqlens, max_seqlen, slot_T, key_mask_R11L, keys[0])
        hidden_TH = self.attention_norm(hidden_TH, attended, keys[1])
        output: Tensor = self.ffn_norm(hidden_TH, self.ffn_out(self.ffn_in(hidden_TH)), keys[2])
        return output
