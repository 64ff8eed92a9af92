"""The masked-language-model head's transform; its output layer is the tied `Vocabulary`."""

from __future__ import annotations

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
