"""Cutting a pack into rows: a function of the pack and the length alone, so nothing is carried over.

The payload of a pack is its tokens with one `</s>` after each document that ends in it. A row of
`full_sentences` or `blocks` is `<s>` + a range of the payload + `</s>`, the last only where the range
does not end in one already. Rows of the other formats lie inside one document: they are ranges of
the tokens themselves.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roberta_dist.corpus.pack import Pack

PACKING_VERSION = 1
"""Changes whenever the same pack would be cut into other rows: kept counts are then not used."""
PAIR_SPECIALS = 4
"""`<s> A </s></s> B </s>`."""


def _ended_documents(pack: Pack) -> NDArray[np.int64]:
    """Cumulative sentence counts of the documents that end in this pack."""
    ends = pack.document_ends.astype(np.int64)
    return ends[:-1] if pack.continues_next else ends


def _sentence_ends(pack: Pack) -> NDArray[np.int64]:
    """Where each sentence ends, in tokens."""
    return np.cumsum(pack.sentence_lengths, dtype=np.int64)


def document_token_ends(pack: Pack) -> NDArray[np.int64]:
    """Where each document that ends in this pack does, in tokens."""
    return np.concatenate(([0], _sentence_ends(pack)))[_ended_documents(pack)]


def pack_payload(pack: Pack, eos: int) -> NDArray[np.uint16]:
    """Tokens with `eos` after each document that ends in this pack."""
    token_ends = document_token_ends(pack)
    closing = np.uint16(eos).tobytes()
    tokens, start = byte_view(pack.tokens), 0
    parts: list[memoryview | bytes] = []
    for end in (2 * token_ends).tolist():
        parts += (tokens[start:end], closing)
        start = end
    parts.append(tokens[start:])
    return np.frombuffer(b"".join(parts), dtype=np.uint16)


def byte_view(tokens: NDArray[np.uint16]) -> memoryview:
    """The bytes of `tokens`, two each: joining slices of it is several times faster than numpy's copies."""
    return memoryview(np.ascontiguousarray(tokens).view(np.uint8).data)


def full_sentence_bounds(pack: Pack, length: int) -> NDArray[np.int64]:
    """Rows of whole sentences, as many as fit (RoBERTa §4.2, FULL-SENTENCES).

    A row starting at `a` takes the sentences whose end, without the `</s>` of their document,
    lies at most `length` - 2 after `a`. A sentence longer than that is cut there.

    Returns:
        int64 [blocks, 2]: start and end in the payload; consecutive and without gaps.
    """
    ends = _sentence_ends(pack)
    closes = np.zeros(len(ends), dtype=np.int64)
    closes[_ended_documents(pack) - 1] = 1
    payload_ends = ends + np.cumsum(closes)
    # Views, since a pack has thirty sentences for each row and few of them are looked at.
    effective_ends, full_ends = (payload_ends - closes).data, payload_ends.data
    count = len(ends)
    total = full_ends[-1] if count else 0
    row_ends: list[int] = []
    start, first = 0, 0
    while start < total:
        limit = start + length - 2
        # Every sentence has a token, so no more than `length` of them fit.
        furthest = first + length
        fitting = bisect_right(
            effective_ends, limit, first, furthest if furthest < count else count
        )
        if fitting > first:
            start, first = full_ends[fitting - 1], fitting
        else:
            start = limit
        row_ends.append(start)
    bounds = np.zeros((len(row_ends), 2), dtype=np.int64)
    bounds[:, 1] = row_ends
    bounds[1:, 0] = bounds[:-1, 1]
    return bounds


def contiguous_bounds(payload_length: int, length: int) -> NDArray[np.int64]:
    """Rows of exactly `length` - 1 payload tokens; the rest of the pack is not used.

    Returns:
        int64 [payload_length // (length - 1), 2].
    """
    starts = np.arange(payload_length // (length - 1), dtype=np.int64) * (length - 1)
    return np.stack([starts, starts + length - 1], axis=1)


def document_bounds(pack: Pack, budget: int) -> NDArray[np.int64]:
    """Rows of whole sentences that never cross a document, up to `budget` tokens each.

    A sentence longer than the budget is cut there (RoBERTa §4.2, DOC-SENTENCES: budget is the
    length less `<s>` and `</s>`).

    Returns:
        int64 [blocks, 3]: start and end in the tokens, number of the document in the pack.
    """
    ends = _sentence_ends(pack).data
    rows: list[tuple[int, int, int]] = []
    start, first = 0, 0
    for document, last in enumerate(pack.document_ends.tolist()):
        document_end = ends[last - 1] if last else 0
        while start < document_end:
            fitting = bisect_right(ends, start + budget, first, min(last, first + budget + 1))
            if fitting > first:
                end, first = ends[fitting - 1], fitting
            else:
                end = start + budget
            rows.append((start, end, document))
            start = end
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


@dataclass(frozen=True)
class PairChunks:
    """Stretches of a document that become `<s> A </s></s> B </s>`.

    Attributes:
        bounds_C3: int64 [chunks, 3]: start and end in the tokens, number of the document in the pack.
        breaks: token positions at which a chunk may be parted in A and B, ascending.
        breaks_C2: int64 [chunks, 2]: which range of `breaks` lies inside the chunk; an empty one
            means a chunk of one sentence, parted anywhere between its tokens.
    """

    bounds_C3: NDArray[np.int64]
    breaks: NDArray[np.int64]
    breaks_C2: NDArray[np.int64]


def segment_chunks(pack: Pack, length: int) -> PairChunks:
    """Chunks of whole sentences of one document, as long as fits in a row of `length`."""
    bounds = document_bounds(pack, length - PAIR_SPECIALS)
    breaks = _sentence_ends(pack)
    inside = np.stack(
        [
            np.searchsorted(breaks, bounds[:, 0], side="right"),
            np.searchsorted(breaks, bounds[:, 1], side="left"),
        ],
        axis=1,
    )
    return PairChunks(bounds, breaks, np.maximum(inside, inside[:, :1]))


def sentence_chunks(pack: Pack, length: int) -> PairChunks:
    """Two neighbouring sentences of one document each.

    Sentences longer than half a row are cut first, so that no pair loses tokens. The last sentence
    of an odd number is paired with the one before it, which is then read twice.
    """
    half = (length - PAIR_SPECIALS) // 2
    ends = _sentence_ends(pack)
    lengths = pack.sentence_lengths.astype(np.int64)
    pieces = -(-lengths // half)  # [sentences]
    piece_ends = np.repeat(ends - lengths, pieces) + half * (_within(pieces) + 1)
    piece_ends = np.minimum(piece_ends, np.repeat(ends, pieces))
    piece_starts = np.concatenate(([0], piece_ends[:-1])) if len(piece_ends) else piece_ends
    cumulative = np.concatenate(([0], np.cumsum(pieces)))
    document_ends = cumulative[pack.document_ends.astype(np.int64)]
    in_document = np.diff(document_ends, prepend=0)  # pieces of each document
    pairs = -(-in_document // 2)
    first_piece = np.repeat(document_ends - in_document, pairs)
    # The k-th pair begins at piece 2k, but the last one where two pieces are left for it.
    place = np.minimum(2 * _within(pairs), np.repeat(np.maximum(in_document - 2, 0), pairs))
    left = first_piece + place
    single = np.repeat(in_document, pairs) == 1
    right = np.where(single, left, left + 1)
    documents = np.repeat(np.arange(len(in_document)), pairs)
    bounds = np.stack([piece_starts[left], piece_ends[right], documents], axis=1)
    return PairChunks(bounds, piece_ends, np.stack([left, right], axis=1))


def _within(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """0 … counts[i]-1 for every i, one after the other."""
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    return np.arange(len(starts), dtype=np.int64) - starts
