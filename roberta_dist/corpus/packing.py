"""Cutting a pack into rows: a function of the pack and the length alone, so nothing is carried over.

The payload of a pack is its tokens with one `</s>` after each document that ends in it. A row is
`<s>` + a range of the payload + `</s>`, the last only where the range does not end in one already.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

from roberta_dist.corpus.pack import Pack


def _ended_documents(pack: Pack) -> NDArray[np.int64]:
    """Cumulative sentence counts of the documents that end in this pack."""
    ends = pack.document_ends.astype(np.int64)
    return ends[:-1] if pack.continues_next else ends


def _document_token_ends(pack: Pack) -> NDArray[np.int64]:
    sentence_ends = np.concatenate(([0], np.cumsum(pack.sentence_lengths, dtype=np.int64)))
    return sentence_ends[_ended_documents(pack)]


def pack_payload(pack: Pack, eos: int) -> NDArray[np.uint16]:
    """Tokens with `eos` after each document that ends in this pack."""
    return np.insert(pack.tokens, _document_token_ends(pack), np.uint16(eos))


def full_sentence_bounds(pack: Pack, length: int) -> NDArray[np.int64]:
    """Rows of whole sentences, as many as fit (RoBERTa §4.2, FULL-SENTENCES).

    A row starting at `a` takes the sentences whose end, without the `</s>` of their document,
    lies at most `length` - 2 after `a`. A sentence longer than that is cut there.

    Returns:
        int64 [blocks, 2]: start and end in the payload; consecutive and without gaps.
    """
    ends = np.cumsum(pack.sentence_lengths, dtype=np.int64)
    closes = np.zeros(len(ends), dtype=np.int64)
    closes[_ended_documents(pack) - 1] = 1
    payload_ends = ends + np.cumsum(closes)
    effective_ends: list[int] = (payload_ends - closes).tolist()
    full_ends: list[int] = payload_ends.tolist()
    total = full_ends[-1] if full_ends else 0
    bounds: list[tuple[int, int]] = []
    start, first = 0, 0
    while start < total:
        limit = start + length - 2
        fitting = bisect_right(effective_ends, limit, lo=first)
        if fitting > first:
            end, first = full_ends[fitting - 1], fitting
        else:
            end = limit
        bounds.append((start, end))
        start = end
    return np.array(bounds, dtype=np.int64).reshape(-1, 2)


def contiguous_bounds(payload_length: int, length: int) -> NDArray[np.int64]:
    """Rows of exactly `length` - 1 payload tokens; the rest of the pack is not used.

    Returns:
        int64 [payload_length // (length - 1), 2].
    """
    starts = np.arange(payload_length // (length - 1), dtype=np.int64) * (length - 1)
    return np.stack([starts, starts + length - 1], axis=1)
