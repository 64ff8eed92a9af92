"""Where sentences end in text without line breaks: the library `sentencex` says, tokens follow.

The text is never changed: an end between two characters becomes the first token boundary at or
after it, so that a space that a token shares with the next word goes to the next sentence.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from roberta_dist.corpus.extras import load_extra

Segment = Callable[[str, str], list[str]]
_WHITE = (
    "\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
)
# sentencex 1.0 steps one byte back over a space, and panics inside one of several bytes.
_PLAIN_SPACE = str.maketrans(
    {**dict.fromkeys(_WHITE, " "), **dict.fromkeys("\x85\u2028\u2029", "\n")}
)


class Splitter:
    """Sentence lengths by the rules of one language.

    Args:
        language: ISO 639-1 code; sentencex takes a related or general rule for one it has not.

    Raises:
        ConfigError: sentencex is not installed.
    """

    def __init__(self, language: str) -> None:
        self._language = language
        self._segment: Segment = load_extra("sentencex", "corpus.sentences=splitter").segment

    def lengths(self, text: str, token_bytes: NDArray[np.int64], longest: int) -> NDArray[np.int64]:
        """Lengths of the sentences of a document in tokens.

        Args:
            text: the document.
            token_bytes: [tokens], bytes of UTF-8 of each token; they sum to those of `text`.
            longest: tokens of the longest piece.

        Returns:
            int64 [sentences], summing to the number of tokens; a sentence longer than `longest` is
            given in pieces.
        """
        if not len(token_bytes):
            return np.zeros(0, dtype=np.int64)
        token_ends = np.cumsum(token_bytes)
        places = _byte_offsets(text, sentence_ends(text, self._segments(text)))
        ends = np.unique(np.append(np.searchsorted(token_ends, places) + 1, len(token_bytes)))
        return limit_lengths(np.diff(ends, prepend=0), longest)

    def _segments(self, text: str) -> list[str]:
        """What sentencex makes of the text, with plain spaces; its lines if it fails."""
        plain = text if text.isascii() else text.translate(_PLAIN_SPACE)
        try:
            segments = self._segment(self._language, plain)
        except BaseException as error:
            # A panic of the library is no Exception; the text is kept, only its sentences are lines.
            if type(error).__name__ != "PanicException":
                raise
            return plain.splitlines(keepends=True)
        return segments if "".join(segments) == plain else plain.splitlines(keepends=True)


def sentence_ends(text: str, segments: list[str]) -> list[int]:
    """Characters of `text` before each end of a sentence but the last.

    Line breaks after a sentence stay with it, as where lines are sentences; spaces after it go to
    the next one. What holds only whitespace is no sentence.

    Args:
        text: the document.
        segments: its sentences, whitespace included: their lengths sum to that of `text`.
    """
    ends: list[int] = []
    start = words_end = 0
    for segment in segments:
        body = segment.rstrip()
        if body:
            words_start = start + len(body) - len(body.lstrip())
            if words_end:
                ends.append(words_end + text[words_end:words_start].rfind("\n") + 1)
            words_end = start + len(body)
        start += len(segment)
    return ends


def _byte_offsets(text: str, places: list[int]) -> NDArray[np.int64]:
    """Bytes of UTF-8 before each of the rising character offsets."""
    if text.isascii():
        return np.array(places, dtype=np.int64)
    pieces = zip([0, *places[:-1]], places, strict=True) if places else ()
    return np.cumsum(
        [len(text[start:end].encode("utf-8")) for start, end in pieces], dtype=np.int64
    )


def limit_lengths(lengths: NDArray[np.int64], longest: int) -> NDArray[np.int64]:
    """`lengths` with those over `longest` in pieces of it, the last one the rest."""
    if not lengths.size or lengths.max() <= longest:
        return lengths
    pieces = -(-lengths // longest)
    limited = np.full(int(pieces.sum()), longest, dtype=np.int64)
    last = np.cumsum(pieces) - 1
    limited[last] = lengths - (pieces - 1) * longest
    return limited
