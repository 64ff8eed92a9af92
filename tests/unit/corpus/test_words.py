"""The tables that say where words begin: read off the bytes of every token."""

from __future__ import annotations

import pytest

from roberta_dist.corpus.bpe import Bpe, byte_alphabet, train_bpe
from roberta_dist.corpus.words import word_tables

pytestmark = pytest.mark.unit

TEXT = ["the fox  and the dog\n\tthe end", "中文　文字 中文", "🦄 🦄🦄"] * 30


@pytest.fixture(scope="module")
def bpe() -> Bpe:
    return train_bpe(iter(TEXT), 330)


def spell(text: str) -> str:
    return "".join(byte_alphabet()[byte] for byte in text.encode())


def test_known_tokens(bpe: Bpe) -> None:
    tables = word_tables(bpe)

    def row(token: str) -> tuple[bool, ...]:
        number = bpe.vocab[token]
        return tuple(
            bool(table[number])
            for table in (
                tables.begins_with_space,
                tables.ends_with_space,
                tables.only_space,
                tables.begins_character,
            )
        )

    assert row(spell(" the")) == (True, False, False, True)
    assert row(spell("t")) == (False, False, False, True)
    assert row(spell("\n")) == row(spell(" ")) == (True, True, True, True)
    assert row(byte_alphabet()[0xE4]) == (False, False, False, True)  # 中 begins with it
    assert row(byte_alphabet()[0xB8]) == (False, False, False, False)  # and goes on with it
    for special in ("<s>", "</s>", "<mask>"):
        assert row(special) == (False, False, False, False)


def test_unicode_whitespace_counts(bpe: Bpe) -> None:
    wide = dict(bpe.vocab) | {spell("\u3000"): bpe.size, spell("a\u00a0"): bpe.size + 1}
    tables = word_tables(Bpe(wide, bpe.merges, True, bpe.tokenizer))
    assert tables.only_space[bpe.size] and tables.begins_with_space[bpe.size]
    assert tables.ends_with_space[bpe.size + 1] and not tables.only_space[bpe.size + 1]


def test_added_tokens_are_text(bpe: Bpe) -> None:
    """A tokenizer.json may add a token spelt plainly, with characters outside the byte alphabet."""
    tables = word_tables(Bpe(dict(bpe.vocab) | {"京 ": bpe.size}, bpe.merges, True, bpe.tokenizer))
    assert tables.begins_character[bpe.size] and tables.ends_with_space[bpe.size]


def test_whole_characters_begin_once(bpe: Bpe) -> None:
    """In any text, as many tokens begin a character as there are characters begun by a token."""
    tables = word_tables(bpe)
    for text in TEXT[:3]:
        tokens = bpe.tokenizer.encode(text, add_special_tokens=False).ids
        for cut, token in enumerate(tokens):
            before = bpe.tokenizer.decode(tokens[:cut])
            assert tables.begins_character[token] == ("\ufffd" not in before)
