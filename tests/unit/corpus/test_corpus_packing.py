"""Packs: bytes there and back; rows against a reference that walks token by token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roberta_dist.corpus.encode import Encoded
from roberta_dist.corpus.pack import Pack, decode_pack, encode_pack
from roberta_dist.corpus.packing import contiguous_bounds, full_sentence_bounds, pack_payload
from roberta_dist.corpus.shards import build_packs
from roberta_dist.errors import DataFault

pytestmark = pytest.mark.unit

EOS = 2
DOCUMENTS = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=6), min_size=1, max_size=12)
"""Sentence lengths of each document."""


def make_pack(documents: list[list[int]], continues_next: bool) -> Pack:
    lengths = [length for document in documents for length in document]
    return Pack(
        tokens=np.arange(10, 10 + sum(lengths), dtype=np.uint16),
        sentence_lengths=np.array(lengths, dtype=np.uint16),
        document_ends=np.cumsum([len(document) for document in documents]).astype(np.uint32),
        continues_next=continues_next,
    )


def reference_rows(
    documents: list[list[int]], continues_next: bool, length: int
) -> list[list[int]]:
    """FULL-SENTENCES as the paper says it: whole sentences while the row, closed by `</s>`, fits."""
    sentences: list[list[int]] = []
    token = 10
    for number, document in enumerate(documents):
        for place, count in enumerate(document):
            sentences.append([*range(token, token + count)])
            token += count
            ended = number < len(documents) - 1 or not continues_next
            if ended and place == len(document) - 1:
                sentences[-1].append(EOS)
    rows: list[list[int]] = []
    row: list[int] = []
    while sentences:
        closed = row + sentences[0] + ([] if sentences[0][-1] == EOS else [EOS])
        if len(closed) <= length - 1:
            row += sentences.pop(0)
        elif row:
            rows.append(row)
            row = []
        else:
            rows.append(sentences[0][: length - 2])
            sentences[0] = sentences[0][length - 2 :]
    return [*rows, row] if row else rows


@settings(max_examples=300, deadline=None)
@given(documents=DOCUMENTS, continues_next=st.booleans(), length=st.integers(8, 70))
def test_full_sentences_equal_the_reference(
    documents: list[list[int]], continues_next: bool, length: int
) -> None:
    pack = make_pack(documents, continues_next)
    payload = pack_payload(pack, EOS)
    rows = [payload[a:b].tolist() for a, b in full_sentence_bounds(pack, length)]
    assert rows == reference_rows(documents, continues_next, length)
    assert [token for row in rows for token in row] == payload.tolist()


@given(total=st.integers(0, 500), length=st.integers(8, 70))
def test_contiguous_rows_are_full_and_consecutive(total: int, length: int) -> None:
    bounds = contiguous_bounds(total, length)
    assert all(b - a == length - 1 for a, b in bounds)
    assert bounds[:, 0].tolist() == [*range(0, total - length + 2, length - 1)]


@given(documents=DOCUMENTS, flags=st.tuples(st.booleans(), st.booleans()))
def test_pack_bytes_there_and_back(documents: list[list[int]], flags: tuple[bool, bool]) -> None:
    pack = make_pack(documents, flags[1])
    pack = Pack(pack.tokens, pack.sentence_lengths, pack.document_ends, *flags)
    read = decode_pack(encode_pack(pack), "here")
    assert (read.continues_previous, read.continues_next) == flags
    for name in ("tokens", "sentence_lengths", "document_ends"):
        assert np.array_equal(getattr(read, name), getattr(pack, name))


@pytest.mark.parametrize("damage", [b"", b"XXXX", "cut", "longer"])
def test_damaged_pack_is_refused(damage: bytes | str) -> None:
    data = encode_pack(make_pack([[3, 4]], False))
    damaged = {"cut": data[:-1], "longer": data + b"\0"}.get(str(damage), data[4:])
    if isinstance(damage, bytes):
        damaged = damage + data[4:] if damage else b""
    with pytest.raises(DataFault, match="shard 7"):
        decode_pack(damaged, "shard 7")


@settings(max_examples=300, deadline=None)
@given(documents=DOCUMENTS, capacity=st.integers(30, 120))
def test_packs_hold_every_document_in_order(documents: list[list[int]], capacity: int) -> None:
    encoded, token = [], 0
    for lengths in documents:
        tokens = np.arange(token, token + sum(lengths), dtype=np.uint16)
        token += len(tokens)
        encoded.append(Encoded(tokens, np.array(lengths, dtype=np.int64), 0))
    packs = list(build_packs(encoded, capacity))
    assert all(0 < len(pack.tokens) <= capacity for pack in packs)
    assert np.concatenate([pack.tokens for pack in packs]).tolist() == [*range(token)]
    # Rejoin what the flags say was split: the documents come back, sentence by sentence.
    rebuilt: list[list[int]] = []
    for before, pack in zip([None, *packs], packs, strict=False):
        assert pack.continues_previous == (before is not None and before.continues_next)
        parts = np.split(pack.sentence_lengths, pack.document_ends[:-1].astype(np.int64))
        pieces = [part.tolist() for part in parts]
        if pack.continues_previous:
            rebuilt[-1] += pieces.pop(0)
        rebuilt += pieces
    assert rebuilt == documents
    assert not packs[-1].continues_next
    split = {i for i, lengths in enumerate(documents) if sum(lengths) > capacity}
    assert sum(pack.continues_next for pack in packs) == 0 or split
