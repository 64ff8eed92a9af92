"""Sentences by the library: where a reader would end them, and never a byte lost."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roberta_dist.corpus.bpe import Bpe, train_bpe
from roberta_dist.corpus.encode import Encoder
from roberta_dist.corpus.sentences import Splitter, limit_lengths, sentence_ends

pytestmark = pytest.mark.unit

HOSTILE = st.text(
    st.sampled_from(list("aBMS. \n\t.!?。\"'()“”é中😀\r\0\u2028\u3000\xa0\u0301İß1।[]…")),
    max_size=60,
)


@pytest.fixture(scope="module")
def bpe() -> Bpe:
    lines = ["Dr. Smith said hi. He left. Why?\n\n\n", "中文句子。第二句！ ok  now", "a. B. c! d"]
    return train_bpe(iter(lines * 20), 330)


def sentences(bpe: Bpe, text: str, language: str = "en", longest: int = 65_535) -> list[str]:
    """Each sentence's own bytes, decoded."""
    encoded = Encoder(bpe, longest, Splitter(language)).encode(text)
    assert encoded.sentence_lengths.sum() == len(encoded.tokens)
    ends = np.cumsum(encoded.sentence_lengths)
    parts = np.split(encoded.tokens, ends[:-1]) if len(ends) else []
    return [bpe.tokenizer.decode(part.tolist(), skip_special_tokens=False) for part in parts]


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "Dr. Smith left. He did. Why?", ["Dr. Smith left.", " He did.", " Why?"]),
        ("en", "One.  Two.", ["One.", "  Two."]),
        ("en", "One.\n\n\nTwo.\n", ["One.\n\n\n", "Two.\n"]),
        ("en", "One. \n  Two. ", ["One. \n", "  Two. "]),
        ("en", " \n One. Two.", [" \n One.", " Two."]),
        ("ja", "自然。第二。\u3000終わり", ["自然。", "第二。", "\u3000終わり"]),
        ("en", "Mr.\xa0Jones. 中!", ["Mr.\xa0Jones.", " 中!"]),
        ("en", "S\u3000. One. Two.", ["S\u3000.", " One.", " Two."]),  # sentencex 1.0.32 panics
        ("en", "no end", ["no end"]),
        ("en", " \n ", [" \n "]),
        ("en", "", []),
    ],
)
def test_sentences_end_where_they_should(
    bpe: Bpe, language: str, text: str, expected: list[str]
) -> None:
    assert sentences(bpe, text, language) == expected


@settings(max_examples=300, deadline=None)
@given(text=HOSTILE, longest=st.integers(1, 20), language=st.sampled_from(["en", "ja", "ar", "xx"]))
def test_nothing_is_lost(bpe: Bpe, text: str, longest: int, language: str) -> None:
    encoded = Encoder(bpe, longest, Splitter(language)).encode(text)
    assert bpe.tokenizer.decode(encoded.tokens.tolist(), skip_special_tokens=False) == text
    assert encoded.sentence_lengths.sum() == len(encoded.tokens)
    assert ((encoded.sentence_lengths > 0) & (encoded.sentence_lengths <= longest)).all()


@settings(max_examples=300, deadline=None)
@given(text=HOSTILE, data=st.data())
def test_an_end_is_the_first_token_boundary_at_or_after_it(text: str, data: st.DataObject) -> None:
    """Against a slow reference, for any segments and any tokens."""
    raw = text.encode()
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=5))
    places = sorted({0, len(text), *cuts})
    segments = [text[a:b] for a, b in pairwise(places)]
    token_bytes: list[int] = []
    while sum(token_bytes) < len(raw):
        token_bytes.append(data.draw(st.integers(1, min(4, len(raw) - sum(token_bytes)))))
    splitter = Splitter("en")
    splitter._segment = lambda language, plain: [plain[a:b] for a, b in pairwise(places)]
    lengths = splitter.lengths(text, np.array(token_bytes, dtype=np.int64), 10**6)
    wanted = set()
    for end in sentence_ends(text, segments):
        before = len(text[:end].encode())
        wanted.add(
            next(i + 1 for i in range(len(token_bytes)) if sum(token_bytes[: i + 1]) >= before)
        )
    assert np.cumsum(lengths).tolist() == sorted(wanted | ({len(token_bytes)} if raw else set()))


def test_a_panic_of_the_library_costs_no_text(bpe: Bpe) -> None:
    class PanicException(BaseException):
        pass

    def panics(language: str, text: str) -> list[str]:
        raise PanicException("end byte index 3 is not a char boundary")

    splitter = Splitter("en")
    splitter._segment = panics
    text = "One. Two.\nThree."
    encoded = Encoder(bpe, splitter=splitter).encode(text)
    assert len(encoded.sentence_lengths) == 2

    def interrupted(language: str, text: str) -> list[str]:
        raise KeyboardInterrupt

    splitter._segment = interrupted
    with pytest.raises(KeyboardInterrupt):
        Encoder(bpe, splitter=splitter).encode(text)


@given(lengths=st.lists(st.integers(1, 50)), longest=st.integers(1, 9))
def test_long_sentences_come_in_pieces(lengths: list[int], longest: int) -> None:
    expected = []
    for length in lengths:
        expected += [longest] * (length // longest) + [length % longest] * (length % longest > 0)
    assert limit_lengths(np.array(lengths, dtype=np.int64), longest).tolist() == expected
