"""Batches as the model takes them, of rows without padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

FIRST_TOKEN = 5
"""Below it are the special tokens."""


def flat_batch(lengths: Sequence[int], masked: int, vocab_size: int) -> dict[str, Any]:
    """Random tokens in rows of these lengths, `masked` of them to be predicted: the same every time."""
    generator = torch.Generator().manual_seed(2)
    tokens = sum(lengths)
    return {
        "tokens_T": torch.randint(FIRST_TOKEN, vocab_size, (tokens,), generator=generator),
        "positions_T": torch.cat([torch.arange(length) for length in lengths]),
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).int(),
        "max_seqlen": max(lengths),
        "masked_index_M": torch.randperm(tokens, generator=generator)[:masked],
        "labels_M": torch.randint(FIRST_TOKEN, vocab_size, (masked,), generator=generator),
    }
