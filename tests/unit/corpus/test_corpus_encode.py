"""Cutting, sentences and encoding: nothing is lost, nothing becomes special."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roberta_dist.corpus.bpe import Bpe, train_bpe
from roberta_dist.corpus.encode import MAX_PIECE_BYTES, Encoder, cut_pieces, sentence_lengths

pytestmark = pytest.mark.unit

TEXTS = st.text(st.sampled_from(list("ab \n\t.é中\u3000\0")), max_size=300)


@pytest.fixture(scope="module")
def bpe() -> Bpe:
    return train_bpe(iter(["a line of text\nand another  one\n\n", "abba baab é中"] * 20), 320)


@settings(max_examples=200, deadline=None)
@given(text=TEXTS, limit=st.integers(8, 40))
def test_pieces_are_short_whole_and_cut_at_words(text: str, limit: int) -> None:
    pieces = list(cut_pieces(text, limit))
    assert "".join(piece for piece, _ in pieces) == text
    assert all(0 < len(piece.encode()) <= limit for piece, _ in pieces)
    for (left, forced), (right, _) in pairwise(pieces):
        assert forced != (bool(re.search(r"\S$", left)) and right[0].isspace())


def test_forced_cuts_are_counted(bpe: Bpe) -> None:
    encoder = Encoder(bpe)
    assert encoder.encode("word " * MAX_PIECE_BYTES).forced_cuts == 0
    assert encoder.encode("x" * MAX_PIECE_BYTES).forced_cuts == 0
    assert encoder.encode("x" * (MAX_PIECE_BYTES + 1)).forced_cuts == 1
    assert encoder.encode(" " * (2 * MAX_PIECE_BYTES) + "x").forced_cuts == 2


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=200))
def test_tokens_decode_to_the_text(bpe: Bpe, text: str) -> None:
    encoded = Encoder(bpe).encode(text)
    assert bpe.tokenizer.decode(encoded.tokens.tolist(), skip_special_tokens=False) == text
    assert encoded.sentence_lengths.sum() == len(encoded.tokens)


@pytest.mark.parametrize("text", ["<mask>", "a </s> b", "<s><pad><unk>"])
@pytest.mark.parametrize("backend", ["tiktoken", "tokenizers"])
def test_literal_specials_stay_text(bpe: Bpe, text: str, backend: str) -> None:
    given = Bpe(bpe.vocab, bpe.merges, backend == "tiktoken", bpe.tokenizer)
    encoder = Encoder(given)
    assert encoder.backend == backend
    tokens = encoder.encode(text).tokens
    assert not set(tokens.tolist()) & set(vars(bpe.specials).values())
    assert bpe.tokenizer.decode(tokens.tolist(), skip_special_tokens=False) == text


@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_a_sentence_ends_after_each_run_of_newline_tokens(bpe: Bpe, text: str) -> None:
    encoded = Encoder(bpe).encode(text)
    spelled = ["\n" in bpe.tokenizer.id_to_token(int(t)).replace("Ċ", "\n") for t in encoded.tokens]
    expected, length = [], 0
    for number, newline in enumerate(spelled):
        length += 1
        if number + 1 == len(spelled) or (newline and not spelled[number + 1]):
            expected.append(length)
            length = 0
    assert encoded.sentence_lengths.tolist() == expected


def test_long_sentences_are_stored_in_pieces() -> None:
    table = np.array([False, True])
    tokens = np.zeros(150_000, dtype=np.uint16)
    tokens[139_999] = 1
    assert sentence_lengths(tokens, table).tolist() == [65_535, 65_535, 8_930, 10_000]
    assert sentence_lengths(tokens[:0], table).tolist() == []
