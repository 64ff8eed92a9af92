"""Text to tokens and sentences, once and for all.

A document is cut into pieces of at most 64 KiB before encoding, since regular-expression engines
overflow on millions of spaces (tiktoken's by a BaseException). GPT-2's pattern never matches across
a non-space character followed by whitespace, so a cut there changes nothing; where there is none,
the cut is made by length and counted. Literal `</s>` or `<mask>` in text stay text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from roberta_dist.corpus.bpe import Bpe, byte_alphabet
from roberta_dist.corpus.pack import MAX_SENTENCE_TOKENS
from roberta_dist.corpus.sentences import Splitter, limit_lengths
from roberta_dist.corpus.tiktoken_bpe import WHITE, tiktoken_agrees, tiktoken_encoder
from roberta_dist.units import KIB

MAX_PIECE_BYTES = 64 * KIB
_BOUNDARY = re.compile(f"[^{WHITE}](?=[{WHITE}])")


@dataclass(frozen=True)
class Encoded:
    """One document.

    Attributes:
        tokens: uint16 [tokens].
        sentence_lengths: int64 [sentences], each at most 65,535; they sum to `tokens`.
        forced_cuts: cuts made by length, where tokens may differ from the uncut text's.
    """

    tokens: NDArray[np.uint16]
    sentence_lengths: NDArray[np.int64]
    forced_cuts: int


def cut_pieces(text: str, longest: int = MAX_PIECE_BYTES) -> Iterator[tuple[str, bool]]:
    """Pieces of at most `longest` bytes of UTF-8, and whether the cut after each was by length."""
    start = 0
    while start < len(text):
        window = text[start : start + longest]
        if not window.isascii():
            window = window.encode("utf-8")[:longest].decode("utf-8", errors="ignore")
        end = start + len(window)
        if end == len(text):
            yield window, False
            return
        cut = _last_boundary(text, start, end)
        yield text[start : cut or end], cut is None
        start = cut or end


def _last_boundary(text: str, start: int, end: int) -> int | None:
    """The last place in (start, end] between a non-space character and whitespace."""
    for first in (max(start, end - 512), start):
        # One character more, so that a boundary right at `end` is seen.
        cuts = [match.end() for match in _BOUNDARY.finditer(text, first, end + 1)]
        if cuts:
            return cuts[-1]
    return None


def sentence_lengths(
    tokens: NDArray[np.uint16], has_newline: NDArray[np.bool_], longest: int = MAX_SENTENCE_TOKENS
) -> NDArray[np.int64]:
    """Lengths of the sentences of a document: one ends after each run of tokens with a newline.

    Args:
        tokens: [tokens].
        has_newline: [vocab], whether the token's bytes contain a newline.
        longest: tokens of the longest piece.

    Returns:
        int64 [sentences]; a sentence longer than `longest` is given in pieces.
    """
    if not len(tokens):
        return np.zeros(0, dtype=np.int64)
    newlines = np.flatnonzero(has_newline[tokens])
    ends = np.empty(len(newlines) + 1, dtype=np.int64)
    ends[:-1] = newlines + 1
    ends[-1] = len(tokens) + 1
    # The last of each run of newlines ends a sentence, and so does the document. (np.diff and
    # np.append would cost more than all the rest.)
    is_end = np.ones(len(ends), dtype=np.bool_)
    is_end[:-1] = ends[1:] - ends[:-1] > 1
    ends[-1] = len(tokens)
    lengths = ends[is_end]
    lengths[1:] = lengths[1:] - lengths[:-1]
    return limit_lengths(lengths, longest)


class Encoder:
    """Encodes documents with one tokenizer.

    Through tiktoken where it provably gives the same tokens (3.5-5 times faster), else through
    `tokenizers`.

    Args:
        bpe: the tokenizer.
        longest_sentence: a longer one is stored in pieces of so many tokens.
        splitter: says where sentences end; without one they end at line breaks.

    Attributes:
        backend: `tiktoken` or `tokenizers`.
        vocab_size: rows of an embedding for the tokens.
    """

    def __init__(
        self,
        bpe: Bpe,
        longest_sentence: int = MAX_SENTENCE_TOKENS,
        splitter: Splitter | None = None,
    ) -> None:
        self.vocab_size = bpe.size
        self._splitter = splitter
        self._token_bytes = _byte_lengths(bpe)
        self._longest = min(longest_sentence, MAX_SENTENCE_TOKENS)
        self._has_newline = _newline_table(bpe)
        self._cuts_are_exact = bpe.gpt2_pattern
        if tiktoken_agrees(bpe):
            self.backend = "tiktoken"
            self._encode_piece = tiktoken_encoder(bpe)
        else:
            self.backend = "tokenizers"
            self._encode_piece = _tokenizers_encoder(bpe)

    def encode(self, text: str) -> Encoded:
        """Tokens and sentences of a document; the tokens decode to exactly `text`."""
        parts: list[NDArray[np.uint16]] = []
        forced_cuts = 0
        for piece, forced in cut_pieces(text):
            parts.append(self._encode_piece(piece))
            forced_cuts += forced
        if not self._cuts_are_exact:  # another pattern may match across a cut
            forced_cuts = max(0, len(parts) - 1)
        if len(parts) == 1:
            tokens = parts[0]
        else:
            tokens = np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint16)
        if self._splitter is None:
            lengths = sentence_lengths(tokens, self._has_newline, self._longest)
        else:
            lengths = self._splitter.lengths(text, self._token_bytes[tokens], self._longest)
        return Encoded(tokens, lengths, forced_cuts)


def _newline_table(bpe: Bpe) -> NDArray[np.bool_]:
    """bool [vocab]: the token's bytes contain a newline. Specials never do."""
    newline = byte_alphabet()[ord("\n")]
    table = np.zeros(bpe.size, dtype=np.bool_)
    table[[number for token, number in bpe.vocab.items() if newline in token]] = True
    return table


def _byte_lengths(bpe: Bpe) -> NDArray[np.int64]:
    """int64 [vocab]: bytes of each token, which spells one as one character."""
    table = np.zeros(bpe.size, dtype=np.int64)
    table[list(bpe.vocab.values())] = [len(token) for token in bpe.vocab]
    return table


def _tokenizers_encoder(bpe: Bpe) -> Callable[[str], NDArray[np.uint16]]:
    tokenizer = Tokenizer.from_str(bpe.tokenizer.to_str())
    # Otherwise a literal "</s>" in text becomes the special id even without special tokens asked.
    tokenizer.encode_special_tokens = True

    def encode(piece: str) -> NDArray[np.uint16]:
        ids = tokenizer.encode(piece, add_special_tokens=False).ids
        return np.array(ids, dtype=np.uint16)

    return encode
