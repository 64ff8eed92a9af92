"""Where words begin, read off the tokens of a byte-level BPE.

A byte-level token is bytes, not text: it may hold the space before a word, several words (where
the tokenizer does not cut at whitespace), or a part of a character. The tables here say, per
token, what masking whole words has to know; the words themselves are found by `stream/masking`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roberta_dist.corpus.bpe import ROLES, Bpe, byte_alphabet


@dataclass(frozen=True)
class WordTables:
    """Per token id, all bool [vocab_size]; False for special tokens.

    Attributes:
        begins_with_space: its first character is whitespace (Unicode's, so also U+3000).
        ends_with_space: its last character is whitespace.
        only_space: all its characters are.
        begins_character: its first byte is not a UTF-8 continuation byte (0x80 to 0xBF).
    """

    begins_with_space: NDArray[np.bool_]
    ends_with_space: NDArray[np.bool_]
    only_space: NDArray[np.bool_]
    begins_character: NDArray[np.bool_]


def word_tables(bpe: Bpe) -> WordTables:
    """The tables of a tokenizer.

    Whitespace whose bytes lie in more than one token (U+3000 in a vocabulary that never merged
    it) is not seen as whitespace; the space, tab and line break are single bytes.
    """
    byte_of = {character: byte for byte, character in byte_alphabet().items()}
    tables = WordTables(*(np.zeros(bpe.size, dtype=np.bool_) for _ in range(4)))
    for token, number in bpe.vocab.items():
        # A token added beside the byte alphabet ("<|endoftext|>", or text spelt plainly).
        plain = any(character not in byte_of for character in token)
        spelt = token.encode() if plain else bytes(byte_of[character] for character in token)
        if token in ROLES.values() or not spelt:
            continue
        text = spelt.decode("utf-8", errors="replace")
        tables.begins_with_space[number] = text[0].isspace()
        tables.ends_with_space[number] = text[-1].isspace()
        tables.only_space[number] = text.isspace()
        tables.begins_character[number] = not 0x80 <= spelt[0] <= 0xBF
    return tables
