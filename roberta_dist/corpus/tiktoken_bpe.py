"""The same byte-level BPE through tiktoken, where it provably gives the same tokens.

GPT-2's pattern needs a look-ahead for one thing only: of several white-space characters before a
word, the last one goes with the word. With it the pattern runs in a backtracking engine, which
takes more than half of the time. Here the text is marked at those places beforehand, and a pattern
without look-ahead, which runs as an automaton, cuts it into the same words.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import tiktoken
from numpy.typing import NDArray

from roberta_dist.corpus.bpe import Bpe, byte_alphabet

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
"""GPT-2's cut of text into words (Radford et al. 2019), in the possessive form of tiktoken."""
MARKED_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+"
"""Cuts marked text as GPT-2's pattern cuts the text without marks."""
# Unicode White_Space, which is the `\s` of GPT-2's pattern; Python's own adds U+001C to U+001F.
WHITE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
MARK = "\ufdd0\ufdd1"
"""Two noncharacters: what no text should hold, and what may not matter where one does."""
_BEFORE_MARK = re.compile(f"[{WHITE}](?=[{WHITE}][^{WHITE}])")
_WHITE_BYTES = bytes(byte in b"\t\n\v\f\r " for byte in range(256))
"""Byte → 1 where it is white space of ASCII."""


def tiktoken_agrees(bpe: Bpe) -> bool:
    """Whether tiktoken gives the tokens of the merges, for every text.

    tiktoken merges any neighbours whose bytes together are a token; the merges name the pair. Both
    agree if all bytes are tokens, no two merges have the same product and each product's own bytes
    are merged into it: inside a longer word the same merges then happen in the same order, until
    one crosses its ends.
    """
    products = [left + right for left, right in bpe.merges]
    return (
        bpe.gpt2_pattern
        and all(character in bpe.vocab for character in byte_alphabet().values())
        and len(set(products)) == len(products)
        and all(
            len(pieces := bpe.tokenizer.model.tokenize(product)) == 1 and pieces[0].value == product
            for product in products
        )
    )


def _merged_tokens(bpe: Bpe) -> list[str]:
    return [*byte_alphabet().values(), *(left + right for left, right in bpe.merges)]


def byte_ranks(bpe: Bpe) -> dict[bytes, int]:
    """Bytes of a token → its rank: the order of merging, which published ids do not follow."""
    to_byte = {character: byte for byte, character in byte_alphabet().items()}
    return {
        bytes(to_byte[character] for character in token): rank
        for rank, token in enumerate(_merged_tokens(bpe))
    }


def _marked(piece: str) -> str:
    """`piece` with a mark in all places that need one.

    Text in ASCII, which most text is, is looked at as an array: the expression tries every space.
    """
    if not piece.isascii():
        return _BEFORE_MARK.sub(lambda match: match[0] + MARK, piece)
    white = np.frombuffer(piece.encode().translate(_WHITE_BYTES), dtype=np.bool_)
    cuts: list[int] = (np.flatnonzero(white[:-2] & white[1:-1] & ~white[2:]) + 1).tolist()
    return MARK.join([piece[a:b] for a, b in pairwise([0, *cuts, len(piece)])])


def tiktoken_encoder(bpe: Bpe) -> Callable[[str], NDArray[np.uint16]]:
    """A function from text to token ids; `tiktoken_agrees(bpe)` must hold."""
    ranks = byte_ranks(bpe)
    mark = len(ranks)
    ids: NDArray[np.uint16] = np.array(
        [bpe.vocab[token] for token in _merged_tokens(bpe)], dtype=np.uint16
    )
    encoding = tiktoken.Encoding(
        "roberta_dist",
        pat_str=MARKED_PATTERN,
        mergeable_ranks=ranks,
        special_tokens={MARK: mark},
    )
    marks, none = {MARK}, set[str]()

    def encode(piece: str) -> NDArray[np.uint16]:
        if MARK in piece:
            ranked = np.concatenate([_ranks(part, none) for part in _parts(piece)])
        else:
            ranked = _ranks(_marked(piece), marks)
        tokens: NDArray[np.uint16] = ids[ranked[ranked != mark]]
        return tokens

    def _ranks(text: str, allowed: set[str]) -> NDArray[np.uint32]:
        ranked: NDArray[np.uint32] = encoding.encode_to_numpy(
            text, allowed_special=allowed, disallowed_special=()
        )
        return ranked

    return encode


def _parts(piece: str) -> list[str]:
    """The parts of `piece` that marks would divide."""
    cuts = [0, *(match.end() for match in _BEFORE_MARK.finditer(piece)), len(piece)]
    return [piece[start:end] for start, end in pairwise(cuts)]
