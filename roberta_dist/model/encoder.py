"""RoBERTa with its masked-language-model head and, for pairs, BERT's next-sentence head, over flat
tokens.

T tokens of all rows, no padding · R rows · L longest row · M predicted tokens · H width ·
V vocabulary, padded to a multiple of 64

Only tensors, ints and None cross module boundaries: ZeRO-3's hooks cannot see into dataclasses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from roberta_dist.config.model import Attention, KernelsConfig, ModelConfig
from roberta_dist.model.attention import full_rows, padding_plan
from roberta_dist.model.dropout import draw_keys
from roberta_dist.model.heads import MaskedLanguageHead, NextSentenceHead
from roberta_dist.model.kernels import choose_pieces, resolve_attention, resolve_cross_entropy
from roberta_dist.model.layers import DROPOUTS, Layer, NormDropout, Positions, Vocabulary
from roberta_dist.model.loss import pair_sums


def layer_of(name: str) -> str:
    """Layer of the parameter `name`: `embeddings`, `layers.0` …, or `head`.

    The vocabulary's table is used on both ends and counts as embeddings; its bias only scores.
    """
    first, *rest = name.split(".")
    if first == "layers":
        return f"layers.{rest[0]}"
    return (
        "head" if first in ("head", "next_sentence") or name == "vocabulary.bias" else "embeddings"
    )


class RobertaForPretraining(nn.Module):
    """The encoder of RoBERTa (Liu et al. 2019): post-LayerNorm, exact GELU, learned positions.

    Weights are unset until `model.init.init_weights` or a checkpoint fills them.

    Args:
        config: sizes.
        kernels: how it is computed; never changes the numbers beyond rounding.
        vocab_size: entries of the tokenizer; padded inside, cut off again in what comes out.
        next_sentence: rows are pairs, and a second head tells whether B follows A.
    """

    def __init__(
        self,
        config: ModelConfig,
        kernels: KernelsConfig,
        vocab_size: int,
        next_sentence: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.kernels = kernels
        self.vocab_size = vocab_size
        pieces = choose_pieces(kernels, config)
        self.vocabulary = Vocabulary(config, vocab_size, resolve_cross_entropy(kernels), pieces)
        self.positions = Positions(config)
        self.embedding_norm = NormDropout(config, pieces)
        self.layers = nn.ModuleList(
            Layer(config, kernels, pieces) for _ in range(config.num_layers)
        )
        self.head = MaskedLanguageHead(config)
        self.next_sentence = NextSentenceHead(config) if next_sentence else None

    def forward(
        self,
        *,
        tokens_T: Tensor,
        positions_T: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        masked_index_M: Tensor,
        labels_M: Tensor,
        nsp_labels_R: Tensor | None = None,
    ) -> Tensor:
        """Sums over the batch, fp32, which the caller divides by the counts of the global batch.

        Args:
            tokens_T: int64 [T], ids with masks applied.
            positions_T: int64 [T], 0-based within the row.
            cu_seqlens: int32 [R+1], cumulative row lengths.
            max_seqlen: L.
            masked_index_M: int64 [M], indices into T; M = 0 gives 0 and zero gradients.
            labels_M: int64 [M], ids before masking.
            nsp_labels_R: int64 [R]: 1 where B is the next segment, 0 where it comes from another
                document, −1 where the row is not counted.

        Returns:
            Σ cross-entropy over the predicted tokens, a scalar. With `nsp_labels_R`, [3]: that, Σ
            cross-entropy over the labelled rows, and how many of them were answered right.

        Raises:
            ValueError: `nsp_labels_R` for a model without the next-sentence head.
        """
        hidden_TH = self.encode(tokens_T, positions_T, cu_seqlens, max_seqlen)
        features_MH = self.head(hidden_TH.index_select(0, masked_index_M))
        loss: Tensor = self.vocabulary(features_MH, labels_M=labels_M)
        if nsp_labels_R is None:
            return loss
        if self.next_sentence is None:
            raise ValueError("next-sentence labels, but the model has no next-sentence head")
        logits_R2 = self.next_sentence(hidden_TH.index_select(0, cu_seqlens[:-1]))
        return torch.stack([loss, *pair_sums(logits_R2, nsp_labels_R)])

    def logits(
        self,
        tokens_T: Tensor,
        positions_T: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        masked_index_M: Tensor,
    ) -> Tensor:
        """Scores of every vocabulary entry at the given tokens: [M, vocab_size]."""
        hidden_TH = self.encode(tokens_T, positions_T, cu_seqlens, max_seqlen)
        features_MH = self.head(hidden_TH.index_select(0, masked_index_M))
        logits_MV: Tensor = self.vocabulary(features_MH, decode=True)
        return logits_MV[:, : self.vocab_size]

    def encode(
        self, tokens_T: Tensor, positions_T: Tensor, cu_seqlens: Tensor, max_seqlen: int
    ) -> Tensor:
        """Final hidden states [T, H]."""
        slot_T, key_mask_R11L = None, None
        full = full_rows(cu_seqlens, tokens_T.numel(), max_seqlen)
        attention = resolve_attention(self.kernels, tokens_T.device, full)
        if attention is Attention.sdpa:
            slot_T, key_mask_R11L = padding_plan(cu_seqlens, tokens_T.numel(), max_seqlen)
        elif attention is Attention.varlen and cu_seqlens.device.type != "cuda":
            cu_seqlens = cu_seqlens.long()  # jagged tensors are alike if this very tensor is
        first_key_2: Tensor | None = None
        keys_S32: Sequence[Tensor | None] = [None] * len(self.layers)
        if self.training:
            keys = draw_keys(1 + DROPOUTS * len(self.layers), tokens_T.device)
            first_key_2, keys_S32 = keys[0], keys[1:].view(-1, DROPOUTS, 2).unbind()
        embedded = self.vocabulary(tokens_T) + self.positions(positions_T)
        hidden_TH: Tensor = self.embedding_norm(embedded, first_key_2)
        for layer, keys_32 in zip(self.layers, keys_S32, strict=True):
            rows = (cu_seqlens, max_seqlen, slot_T, key_mask_R11L, keys_32)
            if self.kernels.activation_checkpointing and torch.is_grad_enabled():
                hidden_TH = checkpoint(layer, hidden_TH, *rows, use_reentrant=False)
            else:
                hidden_TH = layer(hidden_TH, *rows)
        return hidden_TH
