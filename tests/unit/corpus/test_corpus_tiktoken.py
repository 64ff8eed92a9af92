"""Marked text is cut as GPT-2's pattern cuts the text itself."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from roberta_dist.corpus.bpe import byte_alphabet, train_bpe
from roberta_dist.corpus.tiktoken_bpe import (
    GPT2_PATTERN,
    MARK,
    WHITE,
    byte_ranks,
    tiktoken_agrees,
    tiktoken_encoder,
)

pytestmark = pytest.mark.unit

BPE = train_bpe(
    iter(["we're  the\n\n  best   of 1999's  naïve été 自然 \t\n x\u3000y \u2029 z"] * 30), 380
)
ENCODE = tiktoken_encoder(BPE)
EXACT = tiktoken.Encoding(
    "exact", pat_str=GPT2_PATTERN, mergeable_ranks=byte_ranks(BPE), special_tokens={}
)
IDS = np.array(
    [BPE.vocab[token] for token in [*byte_alphabet().values(), *(a + b for a, b in BPE.merges)]]
)
"""Rank → id."""
PIECES = st.lists(
    st.one_of(
        st.sampled_from(
            [" ", "  ", "\n", "\t", "\r\n", "\x1c", "\x85", "\xa0", "\u3000", "\u2028", "the", "'re",
             "'", "été", "e\u0301", "自然", "1999", "½", "<mask>", "</s>", "_", "\0", "\ufdd0",
             "\ufdd1", MARK, "\U0001f600", "\u200b"]
        ),
        st.text(max_size=4),
    ),
    max_size=24,
).map("".join)  # fmt: skip


def test_the_white_characters_are_those_of_the_pattern() -> None:
    """Unicode's White_Space: Python's own spaces without the four separators."""
    white = re.compile(f"[{WHITE}]")
    for code in [*range(0xD800), *range(0xE000, 0x11000)]:
        character = chr(code)
        expected = character.isspace() and character not in "\x1c\x1d\x1e\x1f"
        assert bool(white.fullmatch(character)) == expected, hex(code)


ASCII_PIECES = st.lists(
    st.sampled_from([" ", "  ", "\n", "\t", "\v", "\f", "\r\n", "\x1c", "\x1f", "a", "the", "'re", "9", "_"]),
    max_size=24,
).map("".join)  # fmt: skip


@settings(max_examples=1500, deadline=None)
@given(st.one_of(PIECES, ASCII_PIECES))
def test_same_tokens_as_the_pattern_with_look_ahead(text: str) -> None:
    assert tiktoken_agrees(BPE)
    ranks = EXACT.encode_ordinary(text)
    assert ENCODE(text).tolist() == IDS[np.array(ranks, dtype=np.int64)].tolist()
