"""How much arithmetic a step is, from sizes alone. Knows no torch.

Counted: matrix products, 2 FLOPs a multiply-add. Not counted: element-wise work, and products that
a kernel or activation checkpointing computes twice (so that MFU compares useful work).
"""

from __future__ import annotations

from collections.abc import Sequence

from roberta_dist.config.model import ModelConfig, padded_vocabulary

POSITION_ROWS_UNUSED = 2


def parameter_count(model: ModelConfig, vocab_size: int, next_sentence: bool = False) -> int:
    """Parameters of the model with its heads; the vocabulary as given, without padding.

    RoBERTa base and large with 50,265 entries: 124,696,665 and 355,411,033 (transformers counts
    one token-type row, 768 and 1,024, more).
    """
    width, ffn = model.hidden_size, model.ffn_size
    norm = 2 * width
    embeddings = (vocab_size + model.max_positions + POSITION_ROWS_UNUSED) * width + norm
    attention = 4 * (width * width + width) + norm
    feed_forward = 2 * width * ffn + ffn + width + norm
    head = width * width + width + norm + vocab_size
    if next_sentence:
        head += width * width + width + 2 * width + 2
    return embeddings + model.num_layers * (attention + feed_forward) + head


def forward_flops(
    model: ModelConfig,
    vocab_size: int,
    row_lengths: Sequence[int],
    masked_tokens: int,
    padded: bool = True,
    next_sentence: bool = False,
) -> int:
    """FLOPs of one forward pass.

    Args:
        model: sizes.
        vocab_size: entries of the tokenizer; the padded table is what is multiplied.
        row_lengths: tokens of each row that one forward pass takes together.
        masked_tokens: predicted positions in all rows; the head sees no others.
        padded: attention runs on rows padded to the longest (SDPA); else on real lengths.
        next_sentence: the first token of each row goes through the next-sentence head.
    """
    width = model.hidden_size
    tokens = sum(row_lengths)
    projections = 2 * tokens * (4 * width * width + 2 * width * model.ffn_size)
    if padded:
        score_pairs = len(row_lengths) * max(row_lengths, default=0) ** 2
    else:
        score_pairs = sum(length * length for length in row_lengths)
    attention = 2 * 2 * score_pairs * width  # scores, and the weighted sum of values
    head = 2 * masked_tokens * width * (width + padded_vocabulary(vocab_size))
    if next_sentence:
        head += 2 * len(row_lengths) * width * (width + 2)
    return model.num_layers * (projections + attention) + head


def training_flops(
    model: ModelConfig,
    vocab_size: int,
    row_lengths: Sequence[int],
    masked_tokens: int,
    padded: bool = True,
    next_sentence: bool = False,
) -> int:
    """FLOPs of forward and backward: each product has two of its size in the backward pass."""
    return 3 * forward_flops(model, vocab_size, row_lengths, masked_tokens, padded, next_sentence)
