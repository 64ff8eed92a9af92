"""Batches of no text: the most memory that a micro-batch of so many rows can ask for, and the least."""

from __future__ import annotations

import math

import numpy as np

from roberta_dist.config.data import MaskingConfig, MaskUnit
from roberta_dist.corpus.manifest import SpecialTokens
from roberta_dist.stream.batch import Batch, weightless_row

SIGMAS = 6
"""Standard deviations above the expected number of masked tokens: exceeded once in 10⁹ batches."""


def most_masked(tokens: int, masking: MaskingConfig) -> int:
    """More of `tokens` than are ever masked at once.

    A word is masked whole: as far as it has several tokens their number varies more, by as many
    times the variance at most.
    """
    unit = 1 if masking.unit is MaskUnit.token else masking.max_word_tokens
    variance = tokens * unit * masking.probability * (1 - masking.probability)
    return min(tokens, math.ceil(tokens * masking.probability + SIGMAS * math.sqrt(variance)))


def full_batch(
    rows: int, length: int, masking: MaskingConfig, vocab_size: int, pairs: bool
) -> Batch:
    """`rows` rows of `length` tokens, as many masked as ever are.

    The last of several rows lacks one token, so that attention takes the way of padded rows.
    """
    lengths = np.full(rows, length, dtype=np.int32)
    lengths[1:][-1:] -= 1
    cu_seqlens = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    tokens = int(cu_seqlens[-1])
    ids = (np.arange(tokens) % vocab_size).astype(np.uint16)
    masked = most_masked(tokens, masking)
    return Batch(
        tokens_T=ids,
        positions_T=(np.arange(tokens) - np.repeat(cu_seqlens[:-1], lengths)).astype(np.int32),
        cu_seqlens=cu_seqlens,
        max_seqlen=length,
        masked_index_M=np.linspace(0, tokens - 1, masked).astype(np.int64),
        labels_M=ids[:masked],
        row_ids_R=np.arange(rows, dtype=np.int64),
        nsp_labels_R=np.ones(rows, dtype=np.int8) if pairs else None,
    )


def empty_batch(special: SpecialTokens, pairs: bool) -> Batch:
    """One row of weight 0: gradients and their reduction, and next to no activations."""
    row = weightless_row(special)
    return Batch(
        tokens_T=row,
        positions_T=np.arange(len(row), dtype=np.int32),
        cu_seqlens=np.array([0, len(row)], dtype=np.int32),
        max_seqlen=len(row),
        masked_index_M=np.zeros(0, dtype=np.int64),
        labels_M=np.zeros(0, dtype=np.uint16),
        row_ids_R=np.full(1, -1, dtype=np.int64),
        nsp_labels_R=np.full(1, -1, dtype=np.int8) if pairs else None,
    )
