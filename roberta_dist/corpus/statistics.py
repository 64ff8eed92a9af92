"""What a split holds, in numbers: gathered a shard at a time, added up by the join."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roberta_dist.corpus.encode import Encoded

LENGTH_BINS = 40
"""Bin 0 holds length 0, bin i lengths in [2^(i-1), 2^i)."""
_BUFFER_TOKENS = 1 << 20
_PREFIX = "statistics_"


def length_bins(lengths: NDArray[Any]) -> NDArray[np.int64]:
    """Histogram int64 [LENGTH_BINS] of `lengths`, which are not negative."""
    bins = np.frexp(np.asarray(lengths, dtype=np.float64))[1]
    return np.bincount(np.minimum(bins, LENGTH_BINS - 1), minlength=LENGTH_BINS)


@dataclass
class Statistics:
    """Counts of a shard or a split.

    Attributes:
        token_counts: int64 [vocab].
        document_lengths: int64 [LENGTH_BINS], documents by their tokens.
        sentence_lengths: int64 [LENGTH_BINS], sentences (or pieces of long ones) by their tokens.
        documents: each counted once.
        tokens: no special ones.
        text_bytes: of UTF-8.
        sentences: a long one stored in pieces counts as many.
    """

    token_counts: NDArray[np.int64]
    document_lengths: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(LENGTH_BINS, dtype=np.int64)
    )
    sentence_lengths: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(LENGTH_BINS, dtype=np.int64)
    )
    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    sentences: int = 0

    def __post_init__(self) -> None:
        self._pending: list[Encoded] = []
        self._pending_tokens = 0

    @classmethod
    def empty(cls, vocab_size: int) -> Statistics:
        """Of nothing."""
        return cls(np.zeros(vocab_size, dtype=np.int64))

    def add_document(self, encoded: Encoded, text_bytes: int) -> None:
        """Count one document; arrays are counted many documents at a time."""
        self.documents += 1
        self.tokens += len(encoded.tokens)
        self.text_bytes += text_bytes
        self.sentences += len(encoded.sentence_lengths)
        self._pending.append(encoded)
        self._pending_tokens += len(encoded.tokens)
        if self._pending_tokens >= _BUFFER_TOKENS or len(self._pending) >= _BUFFER_TOKENS:
            self.flush()

    def flush(self) -> None:
        """Bring the arrays up to date; all methods that read them do it."""
        if not self._pending:
            return
        documents, self._pending, self._pending_tokens = self._pending, [], 0
        tokens = np.concatenate([document.tokens for document in documents])
        sentences = np.concatenate([document.sentence_lengths for document in documents])
        self.token_counts += np.bincount(tokens, minlength=len(self.token_counts))
        self.document_lengths += length_bins(np.array([len(d.tokens) for d in documents]))
        self.sentence_lengths += length_bins(sentences)

    def merge(self, other: Statistics) -> None:
        """Add the counts of `other`."""
        self.flush()
        other.flush()
        for item in fields(self):
            vars(self)[item.name] = vars(self)[item.name] + vars(other)[item.name]

    def to_arrays(self) -> dict[str, NDArray[np.int64]]:
        """Arrays for `numpy.savez`, their names prefixed so that others find room beside them."""
        self.flush()
        return {
            _PREFIX + item.name: np.asarray(vars(self)[item.name], np.int64)
            for item in fields(self)
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.int64]]) -> Statistics:
        """What `to_arrays` wrote."""
        loaded = cls.empty(0)
        for item in fields(cls):
            value = arrays[_PREFIX + item.name]
            vars(loaded)[item.name] = value if value.ndim else int(value)
        return loaded

    @property
    def unigram_entropy(self) -> float:
        """Nats a token of the split's own token distribution: the best constant predictor's loss."""
        self.flush()
        seen = self.token_counts[self.token_counts > 0]
        shares = seen / seen.sum()
        return 0.0 - float((shares * np.log(shares)).sum())


def total(parts: Iterable[Statistics], vocab_size: int) -> Statistics:
    """The statistics of all `parts` together."""
    summed = Statistics.empty(vocab_size)
    for part in parts:
        summed.merge(part)
    return summed
