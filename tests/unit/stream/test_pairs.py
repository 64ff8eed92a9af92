"""DOC-SENTENCES and the pair formats against references written out slowly from the paper."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roberta_dist.config.data import InputFormat
from roberta_dist.corpus.manifest import SpecialTokens
from roberta_dist.corpus.pack import Pack
from roberta_dist.corpus.packing import sentence_chunks
from roberta_dist.stream.blocks import RowMaker
from roberta_dist.stream.formats import (
    IS_NEXT,
    NO_LABEL,
    NOT_NEXT,
    count_blocks,
    draw_pair,
    pair_bits,
    pair_rows,
    plain_rows,
)

pytestmark = pytest.mark.unit
SPECIAL = SpecialTokens(bos=0, pad=1, eos=2, unk=3, mask=4)
DOCUMENTS = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=7), min_size=1, max_size=8)
LENGTHS = st.sampled_from([8, 9, 16, 40])


def make_pack(documents: list[list[int]], continues_next: bool = False) -> Pack:
    """Every token is another number, so that a row says where it came from."""
    lengths = [length for document in documents for length in document]
    return Pack(
        tokens=np.arange(10, 10 + sum(lengths), dtype=np.uint16),
        sentence_lengths=np.array(lengths, dtype=np.uint16),
        document_ends=np.cumsum([len(document) for document in documents]).astype(np.uint32),
        continues_next=continues_next,
    )


def sentences_of(documents: list[list[int]]) -> list[list[list[int]]]:
    token, result = 10, []
    for document in documents:
        result.append([])
        for count in document:
            result[-1].append([*range(token, token + count)])
            token += count
    return result


def slow_chunks(documents: list[list[int]], budget: int) -> list[list[list[int]]]:
    """Greedy whole sentences of one document; a chunk is its sentences, over-long ones in pieces."""
    chunks = []
    for document in sentences_of(documents):
        chunk: list[list[int]] = []
        for sentence in document:
            if chunk and sum(map(len, chunk)) + len(sentence) > budget:
                chunks.append(chunk)
                chunk = []
            while sum(map(len, chunk)) + len(sentence) > budget:
                chunks.append([sentence[:budget]])
                sentence = sentence[budget:]
            chunk.append(sentence)
        chunks.append(chunk)
    return chunks


@given(DOCUMENTS, LENGTHS, st.booleans())
@settings(max_examples=150, deadline=None)
def test_doc_sentences_equal_a_slow_reference(documents, length, open_end):
    rows = plain_rows(make_pack(documents, open_end), InputFormat.doc_sentences, length, SPECIAL)
    expected = [
        [SPECIAL.bos, *(token for sentence in chunk for token in sentence), SPECIAL.eos]
        for chunk in slow_chunks(documents, length - 2)
    ]
    assert [rows.row(i).tolist() for i in range(len(rows))] == expected
    assert len(rows) == count_blocks(make_pack(documents), InputFormat.doc_sentences, length)


@given(DOCUMENTS, LENGTHS, st.booleans())
@settings(max_examples=150, deadline=None)
def test_full_sentences_equal_a_slow_reference(documents, length, open_end):
    """Sentence by sentence: a row takes what fits with its closing `</s>`, across documents."""
    items: list[list[int]] = []
    for number, document in enumerate(sentences_of(documents)):
        items += document
        if number < len(documents) - 1 or not open_end:
            items[-1] = [*items[-1], SPECIAL.eos]
    expected: list[list[int]] = []
    row: list[int] = []
    while items:
        item = items[0]
        needed = len(row) + len(item) + (item[-1] != SPECIAL.eos)
        if needed <= length - 1:
            row += items.pop(0)
        elif row:
            expected.append(row)
            row = []
        else:
            expected.append(item[: length - 2])
            items[0] = item[length - 2 :]
    expected += [row] if row else []
    closed = [[SPECIAL.bos, *r, *([] if r[-1] == SPECIAL.eos else [SPECIAL.eos])] for r in expected]
    pack = make_pack(documents, open_end)
    rows = plain_rows(pack, InputFormat.full_sentences, length, SPECIAL)
    assert [rows.row(i).tolist() for i in range(len(rows))] == closed
    assert len(rows) == count_blocks(pack, InputFormat.full_sentences, length)


def slow_sentence_pairs(documents: list[list[int]], half: int) -> list[tuple[list[int], list[int]]]:
    pairs = []
    for document in sentences_of(documents):
        pieces = [s[i : i + half] for s in document for i in range(0, len(s), half)]
        if len(pieces) == 1:
            pairs.append((pieces[0], []))
        for i in range(0, len(pieces) - 1, 2):
            pairs.append((pieces[i], pieces[i + 1]))
        if len(pieces) % 2 and len(pieces) > 1:
            pairs.append((pieces[-2], pieces[-1]))
    return pairs


@given(DOCUMENTS, LENGTHS)
@settings(max_examples=150, deadline=None)
def test_sentence_pairs_equal_a_slow_reference(documents, length):
    pack = make_pack(documents)
    rows = pair_rows(pack, InputFormat.sentence_pair, length, first_document=7)
    found = []
    for chunk in range(len(rows)):
        start, middle, end = rows.part(chunk, 12345)
        single = rows.chunks.breaks_C2[chunk, 0] == rows.chunks.breaks_C2[chunk, 1]
        middle = end if single else middle
        found.append((pack.tokens[start:middle].tolist(), pack.tokens[middle:end].tolist()))
    assert found == slow_sentence_pairs(documents, (length - 4) // 2)
    assert len(rows) == count_blocks(pack, InputFormat.sentence_pair, length)


def owner(documents: list[list[int]]) -> dict[int, int]:
    """Token → document."""
    return {
        token: number
        for number, document in enumerate(sentences_of(documents))
        for sentence in document
        for token in sentence
    }


@given(DOCUMENTS, LENGTHS, st.sampled_from(["segment_pair", "sentence_pair"]), st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_pairs_are_what_they_claim(documents, length, name, seed):
    pack, document_of = make_pack(documents), owner(documents)
    starts = {sentence[0] for document in sentences_of(documents) for sentence in document}
    rows = pair_rows(pack, InputFormat(name), length, first_document=0)
    assert len(rows) == count_blocks(pack, InputFormat(name), length)
    if name == "segment_pair":
        chunks = [[t for s in chunk for t in s] for chunk in slow_chunks(documents, length - 4)]
        assert [pack.tokens[a:b].tolist() for a, b, _ in rows.chunks.bounds_C3] == chunks
    for chunk, bits_4 in enumerate(pair_bits(seed, np.arange(len(rows)))):
        row, label = draw_pair(rows, chunk, bits_4, None, SPECIAL)
        tokens = row.tolist()
        assert len(tokens) <= length
        assert tokens[0] == SPECIAL.bos and tokens[-1] == SPECIAL.eos
        cut = tokens.index(SPECIAL.eos)
        assert tokens[cut + 1] == SPECIAL.eos
        left, right = tokens[1:cut], tokens[cut + 2 : -1]
        start, end, number = rows.chunks.bounds_C3[chunk].tolist()
        assert left[0] == 10 + start and {document_of[t] for t in left} == {number}
        if label == IS_NEXT:
            assert left + right == pack.tokens[start:end].tolist() and left and right
            one_sentence = not starts & set((left + right)[1:])
            assert right[0] in starts or one_sentence or name == "sentence_pair"
        elif label == NOT_NEXT:
            assert left and right and len({document_of[t] for t in right}) == 1
            assert document_of[right[0]] != number
            assert right == [*range(right[0], right[0] + len(right))]
        else:
            assert label == NO_LABEL and len(documents) == 1 and len(left) == 1 and not right


def test_half_of_the_pairs_are_next_and_negatives_are_uniform():
    documents = [[3, 4, 5, 2]] * 12
    rows = pair_rows(make_pack(documents), InputFormat.segment_pair, 64, 0)
    draws = 20_000
    labels, others, parts = [], [], []
    bits = pair_bits(5, np.arange(draws))
    for bits_4 in bits:
        row, label = draw_pair(rows, 3, bits_4, None, SPECIAL)
        labels.append(label)
        cut = row.tolist().index(SPECIAL.eos)
        parts.append(cut - 1)
        if label == NOT_NEXT:
            document, place = divmod(int(row[cut + 2]) - 10, 14)
            others.append(document)
            assert place in (3, 7, 12)  # B is the latter part of a chunk, from a sentence on
    sigma = np.sqrt(draws) / 2
    assert abs(labels.count(IS_NEXT) - draws / 2) < 4 * sigma
    shares = np.bincount(others, minlength=12)
    assert shares[3] == 0
    expected = len(others) / 11
    assert np.abs(np.delete(shares, 3) - expected).max() < 5 * np.sqrt(expected)
    # A is one, two or three whole sentences of the four, equally often.
    assert set(parts) == {3, 7, 12}
    assert np.abs(np.unique(parts, return_counts=True)[1] - draws / 3).max() < 5 * np.sqrt(
        draws / 3
    )


def test_a_book_takes_its_negatives_from_another_pack():
    book, other = make_pack([[5] * 20]), make_pack([[6, 6], [7, 7]])
    rows = pair_rows(book, InputFormat.segment_pair, 32, first_document=41)
    partner = pair_rows(other, InputFormat.segment_pair, 32, first_document=41)
    for bits_4 in pair_bits(9, np.arange(50)):
        row, label = draw_pair(rows, 1, bits_4, partner, SPECIAL)
        if label == NOT_NEXT:  # never from the partner's first document: it is the same book
            cut = row.tolist().index(SPECIAL.eos)
            assert int(row[cut + 2]) - 10 >= 12
        alone, forced = draw_pair(rows, 1, bits_4, None, SPECIAL)
        assert forced == IS_NEXT and len(alone) == 4 + 25


def test_the_partner_of_a_pack_does_not_depend_on_the_other_corpora():
    packs = np.zeros(40, dtype=[("documents", int), ("first_document", int)])
    packs["first_document"] = np.arange(40)
    manifest = SimpleNamespace(packs=packs, special_tokens=SPECIAL)
    one, two = (SimpleNamespace(corpus=name, manifest=manifest) for name in ("one", "two"))
    partners = []
    for readers in ([two], [one, two]):
        maker = RowMaker(readers, InputFormat.segment_pair, seed=1, capacity=2)
        key = (len(readers) - 1, 7, 32)
        partners.append([maker._partner(key, epoch)[1] for epoch in range(20)])
    assert partners[0] == partners[1]


def test_no_token_of_a_document_is_left_out_of_sentence_pairs():
    chunks = sentence_chunks(make_pack([[9, 2, 30], [1], [4, 4, 4, 4, 4]]), 20)
    covered = set()
    for start, end, _ in chunks.bounds_C3.tolist():
        covered |= set(range(start, end))
    assert covered == set(range(9 + 2 + 30 + 1 + 20))
