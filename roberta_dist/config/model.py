"""`model` and `kernels`: the encoder's sizes, and how it is computed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from roberta_dist.config.fields import free, identity, require


@dataclass(frozen=True)
class ModelConfig:
    """A RoBERTa encoder with its masked-language-model head (RoBERTa Table 9)."""

    num_layers: int = identity(12)
    """Transformer layers."""
    hidden_size: int = identity(768)
    """Width of the residual stream."""
    ffn_size: int = identity(3072)
    """Width of the feed-forward layer."""
    num_heads: int = identity(12)
    """Attention heads; must divide `hidden_size`."""
    max_positions: int = identity(512)
    """Longest sequence; the position table has `max_positions + 2` rows, as RoBERTa's."""
    dropout: float = identity(0.1)
    """Dropout after embeddings, attention output and feed-forward output."""
    attention_dropout: float = identity(0.1)
    """Dropout on attention probabilities."""
    init_std: float = identity(0.02)
    """Standard deviation of the initial weights."""
    layer_norm_eps: float = identity(1e-5)
    """Epsilon of every LayerNorm."""

    def __post_init__(self) -> None:
        for key in ("num_layers", "hidden_size", "ffn_size", "num_heads", "max_positions"):
            value = vars(self)[key]
            require(value > 0, f"model.{key}", value, "must be positive")
        require(
            self.hidden_size % self.num_heads == 0,
            "model.num_heads",
            self.num_heads,
            f"must divide model.hidden_size={self.hidden_size}",
        )
        for key in ("dropout", "attention_dropout"):
            value = vars(self)[key]
            require(0.0 <= value < 1.0, f"model.{key}", value, "must be in [0, 1)")


VOCABULARY_MULTIPLE = 64


def padded_vocabulary(vocab_size: int) -> int:
    """Rows of the vocabulary table: `vocab_size` rounded up to 64, which matrix products like."""
    return -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


class Attention(str, Enum):
    """Which attention kernel computes the encoder."""

    auto = "auto"
    sdpa = "sdpa"
    varlen = "varlen"
    blocked = "blocked"


class Fusion(str, Enum):
    """How the element-wise work between matrix products is computed."""

    auto = "auto"
    compiled = "compiled"
    eager = "eager"


class CrossEntropy(str, Enum):
    """Which kernel scores the predicted tokens and takes their cross-entropy."""

    auto = "auto"
    chunked = "chunked"
    torch = "torch"


@dataclass(frozen=True)
class KernelsConfig:
    """Speed only: every choice gives the same numbers within rounding, and, where a kernel of torch
    draws its own dropout, another draw of the same distribution."""

    attention: Attention = free(Attention.auto)
    """`sdpa`: torch's, on rows padded to the longest; `varlen`: torch's without padding; `blocked`:
    ours for CPUs, no padding; `auto`: `blocked` on a CPU; on a GPU `sdpa` for a batch whose rows are
    all of one length, else `varlen`."""
    fusion: Fusion = free(Fusion.auto)
    """`compiled`: bias, dropout, residual, LayerNorm, GELU and softmax as one kernel each stretch, by
    torch.compile; `eager`: operator after operator; `auto`: compiled on a GPU, and on a CPU from a
    width of 256 where a C++ compiler is found."""
    cross_entropy: CrossEntropy = free(CrossEntropy.auto)
    """`chunked`: ours, no more logits at once than the table has weights, or 64 MiB (on a GPU 1 GiB);
    `torch`: its `linear_cross_entropy` (torch 2.13); `auto`: `chunked`."""
    activation_checkpointing: bool = free(False)
    """Recompute each layer in the backward pass: less memory, about a third more compute."""
