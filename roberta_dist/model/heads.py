"""The two heads: masked language modelling (its output layer is the tied `Vocabulary`) and next
sentence prediction.

M predicted tokens · R rows · H width
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roberta_dist.config.model import ModelConfig


class MaskedLanguageHead(nn.Module):
    """dense, GELU, LayerNorm on the features of predicted positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, features_MH: Tensor) -> Tensor:
        """[M, H] → [M, H]; M may be 0."""
        output: Tensor = self.norm(F.gelu(self.dense(features_MH)))
        return output


class NextSentenceHead(nn.Module):
    """BERT's pooler (dense, tanh) on the features of `<s>`, dropout, and a two-way classifier."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.hidden_size, 2)

    def forward(self, features_RH: Tensor) -> Tensor:
        """[R, H] → scores of (another document, the next segment): [R, 2]."""
        output: Tensor = self.classifier(self.dropout(torch.tanh(self.dense(features_RH))))
        return output
