"""Statistics equal a slow count, and do not depend on how shards are cut."""

from __future__ import annotations

import io
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roberta_dist.corpus import statistics
from roberta_dist.corpus.encode import Encoded
from roberta_dist.corpus.statistics import LENGTH_BINS, Statistics, total

pytestmark = pytest.mark.unit

VOCAB = 12
DOCUMENTS = st.lists(
    st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9), max_size=5), max_size=12
)


def encoded(document: list[list[int]]) -> Encoded:
    tokens = np.array([token for sentence in document for token in sentence], dtype=np.uint16)
    return Encoded(tokens, np.array([len(s) for s in document], dtype=np.int64), 0)


def bins(lengths: list[int]) -> list[int]:
    counts = Counter(length.bit_length() for length in lengths)
    return [counts[place] for place in range(LENGTH_BINS)]


@settings(max_examples=100, deadline=None)
@given(
    documents=DOCUMENTS,
    shards=st.integers(1, 4),
    direct=st.booleans(),
    buffer=st.sampled_from([1, 10, 10**6]),
)
def test_statistics_equal_a_slow_count(
    documents: list, shards: int, direct: bool, buffer: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "_BUFFER_TOKENS", buffer)
        parts = [Statistics.empty(VOCAB) for _ in range(shards)]
        for number, document in enumerate(documents):
            parts[number % shards].add_document(encoded(document), 3 * number)
        if direct:
            parts = [total(parts, VOCAB)]
    stored = []
    for part in parts:
        file = io.BytesIO()
        np.savez(file, **part.to_arrays())
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            stored.append(Statistics.from_arrays(arrays))
    found = total(stored, VOCAB)
    sentences = [sentence for document in documents for sentence in document]
    tokens = Counter(token for sentence in sentences for token in sentence)
    assert found.documents == len(documents) and found.sentences == len(sentences)
    assert found.tokens == sum(tokens.values())
    assert found.text_bytes == sum(3 * number for number in range(len(documents)))
    assert found.token_counts.tolist() == [tokens[token] for token in range(VOCAB)]
    assert found.document_lengths.tolist() == bins([sum(map(len, d)) for d in documents])
    assert found.sentence_lengths.tolist() == bins([len(sentence) for sentence in sentences])
    shares = [count / found.tokens for count in tokens.values()]
    assert found.unigram_entropy == pytest.approx(-sum(s * math.log(s) for s in shares), abs=1e-12)


def test_powers_of_two_begin_a_bin() -> None:
    lengths = [2**power + step for power in range(1, 30) for step in (-1, 0, 1)]
    assert statistics.length_bins(np.array(lengths)).tolist() == bins(lengths)
    assert statistics.length_bins(np.array([2**60]))[-1] == 1
