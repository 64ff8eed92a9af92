"""What the blocks of a pack are in each input format, as complete rows with special tokens.

A plain row is a function of the pack. A pair row is drawn: where it is parted, whether B follows A
and which other document B comes from are pure functions of (seed, row key), so that rows differ
from epoch to epoch and not from world to world.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roberta_dist.config.data import InputFormat
from roberta_dist.corpus.manifest import SpecialTokens
from roberta_dist.corpus.pack import Pack
from roberta_dist.corpus.packing import (
    PAIR_SPECIALS,
    PairChunks,
    byte_view,
    contiguous_bounds,
    document_bounds,
    document_token_ends,
    full_sentence_bounds,
    pack_payload,
    segment_chunks,
    sentence_chunks,
)
from roberta_dist.runtime.rng import counter_bits

IS_NEXT = 1
NOT_NEXT = 0
NO_LABEL = -1
_DRAWS = 4
"""Random words of a pair row: label, break, other chunk, break of the other chunk."""


@dataclass(frozen=True)
class PlainRows:
    """Complete rows of one pack, one after another.

    Attributes:
        tokens: uint16, all rows with their special tokens.
        starts: where each row begins, and the end of the last: [blocks + 1] plain numbers, which
            slice three times faster than numpy's.
    """

    tokens: NDArray[np.uint16]
    starts: list[int]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def row(self, block: int) -> NDArray[np.uint16]:
        """One row; a view."""
        return self.tokens[self.starts[block] : self.starts[block + 1]]


@dataclass(frozen=True)
class PairRows:
    """Chunks of one pack, to be parted and paired.

    Attributes:
        tokens: uint16 [tokens] of the pack.
        chunks: where they lie.
        first_document: number of the pack's first document within the split.
        length: longest row.
    """

    tokens: NDArray[np.uint16]
    chunks: PairChunks
    first_document: int
    length: int

    def __len__(self) -> int:
        return len(self.chunks.bounds_C3)

    def document(self, chunk: int) -> int:
        """Number of the chunk's document within the split."""
        return self.first_document + int(self.chunks.bounds_C3[chunk, 2])

    def part(self, chunk: int, bits: int) -> tuple[int, int, int]:
        """Start, break and end of a chunk; the break is drawn by `bits`.

        A chunk of a single token cannot be parted: its break is its end.
        """
        start, end = (int(bound) for bound in self.chunks.bounds_C3[chunk, :2])
        first, last = (int(bound) for bound in self.chunks.breaks_C2[chunk])
        if last > first:
            return start, int(self.chunks.breaks[first + bits % (last - first)]), end
        inner = end - start - 1
        return start, start + 1 + bits % inner if inner else end, end

    def others(self, document: int) -> tuple[int, int]:
        """The range of chunks that belong to `document`; all others may give a negative."""
        number = document - self.first_document
        documents = self.chunks.bounds_C3[:, 2]
        return (
            int(np.searchsorted(documents, number, side="left")),
            int(np.searchsorted(documents, number, side="right")),
        )


def plain_rows(
    pack: Pack, input_format: InputFormat, length: int, special: SpecialTokens
) -> PlainRows:
    """Rows of `full_sentences`, `doc_sentences` or `blocks`.

    A row of `blocks` is `<s>` and the block, without a closing `</s>`: always full.
    """
    if input_format is InputFormat.full_sentences:
        return _full_rows(pack, length, special)
    if input_format is InputFormat.doc_sentences:
        payload, bounds, closing = pack.tokens, document_bounds(pack, length - 2), special.eos
    else:
        payload, closing = pack_payload(pack, special.eos), None
        bounds = contiguous_bounds(len(payload), length)
    lengths = bounds[:, 1] - bounds[:, 0] + (1 if closing is None else 2)
    opening, ending = _bytes(special.bos), b"" if closing is None else _bytes(closing)
    view = byte_view(payload)
    parts = [
        part
        for start, end in (2 * bounds[:, :2]).tolist()
        for part in (opening, view[start:end], ending)
    ]
    return _joined(parts, lengths)


def _full_rows(pack: Pack, length: int, special: SpecialTokens) -> PlainRows:
    """Rows of `full_sentences`, without making the payload first: a pack is a megabyte.

    A row ends in one `</s>`, its own or that of a document; the next begins with `<s>`. Inside a row
    stands a `</s>` where a document ends.
    """
    bounds = full_sentence_bounds(pack, length)
    document_ends = document_token_ends(pack)
    eos_places = document_ends + np.arange(len(document_ends))  # in the payload
    ended = np.searchsorted(eos_places, bounds[:, 1], side="left")
    row_ends = bounds[:, 1] - ended  # in the tokens
    at_document_end = np.isin(row_ends, document_ends)
    lengths = bounds[:, 1] - bounds[:, 0] + np.where(at_document_end, 1, 2)
    cuts = np.union1d(row_ends, document_ends)
    between = (_bytes(special.eos), _bytes(special.eos) + _bytes(special.bos))
    view, start = byte_view(pack.tokens), 0
    parts: list[memoryview | bytes] = [_bytes(special.bos)]
    for cut, is_row in zip((2 * cuts).tolist(), np.isin(cuts, row_ends).tolist(), strict=True):
        parts += (view[start:cut], between[is_row])
        start = cut
    parts[-1] = between[0]  # no row after the last
    return _joined(parts, lengths)


def _bytes(token: int) -> bytes:
    return np.uint16(token).tobytes()


def _joined(parts: Sequence[memoryview | bytes], lengths: NDArray[np.int64]) -> PlainRows:
    starts: list[int] = np.concatenate(([0], np.cumsum(lengths))).tolist()
    return PlainRows(np.frombuffer(b"".join(parts), dtype=np.uint16), starts)


def pair_rows(pack: Pack, input_format: InputFormat, length: int, first_document: int) -> PairRows:
    """Chunks of `segment_pair` or `sentence_pair`."""
    cut = sentence_chunks if input_format is InputFormat.sentence_pair else segment_chunks
    return PairRows(pack.tokens, cut(pack, length), first_document, length)


def count_blocks(pack: Pack, input_format: InputFormat, length: int) -> int:
    """Blocks of a pack, without making them."""
    if input_format is InputFormat.full_sentences:
        return len(full_sentence_bounds(pack, length))
    if input_format is InputFormat.doc_sentences:
        return len(document_bounds(pack, length - 2))
    if input_format is InputFormat.segment_pair:
        return len(document_bounds(pack, length - PAIR_SPECIALS))
    if input_format is InputFormat.sentence_pair:
        return len(sentence_chunks(pack, length).bounds_C3)
    documents = len(pack.document_ends) - pack.continues_next
    return (len(pack.tokens) + documents) // (length - 1)


def pair_bits(key: int, row_keys_N: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The random words of pair rows, uint64 [N, 4]."""
    counters = row_keys_N[:, None] * _DRAWS + np.arange(_DRAWS)
    return counter_bits(key, counters)


def draw_pair(
    rows: PairRows,
    chunk: int,
    bits_4: NDArray[np.uint64],
    partner: PairRows | None,
    special: SpecialTokens,
) -> tuple[NDArray[np.uint16], int]:
    """One row `<s> A </s></s> B </s>` and its label.

    In half of the rows B is what follows A, in the others a segment of another document: of the same
    pack, or of `partner` where the pack has no other. Where neither is possible (a document of one
    token, no other document at hand) the label is forced, or there is none.

    Args:
        rows: the pack's chunks.
        chunk: which one.
        bits_4: its random words.
        partner: another pack's chunks; needed only where `rows` has a single document.
        special: ids.
    """
    label_bits, part_bits, other_bits, other_part_bits = (int(bits) for bits in bits_4)
    start, middle, end = rows.part(chunk, part_bits)
    document = rows.document(chunk)
    source, first, last = rows, *rows.others(document)
    if last - first == len(rows) and partner is not None:
        source, first, last = partner, *partner.others(document)
    choices = len(source) - (last - first)
    label = IS_NEXT if label_bits >> 63 else NOT_NEXT
    if middle == end:
        label = NOT_NEXT
    elif not choices:
        label = IS_NEXT
    left, right = rows.tokens[start:middle], rows.tokens[middle:end]
    if label == NOT_NEXT:
        if not choices:
            label = NO_LABEL
        else:
            other = other_bits % choices
            other += last - first if other >= first else 0
            begin, cut, stop = source.part(other, other_part_bits)
            begin = cut if cut < stop else begin
            room = rows.length - PAIR_SPECIALS - len(left)
            right = source.tokens[begin : min(stop, begin + room)]
    row = np.empty(len(left) + len(right) + PAIR_SPECIALS, dtype=np.uint16)
    row[0] = special.bos
    row[1 : 1 + len(left)] = left
    row[1 + len(left) : 3 + len(left)] = special.eos
    row[3 + len(left) : -1] = right
    row[-1] = special.eos
    return row, label
