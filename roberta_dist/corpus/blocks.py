"""Text between blank lines, found a chunk at a time: a Python step a block instead of one a line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain

from roberta_dist.corpus.document import CHUNK_BYTES

_SPACE = b" \t\r\n\v\f"
_BLANK_LINES = re.compile(rb"(?:[ \t\r\v\f]*\n)*")
_GAP = re.compile(rb"\n(?:[ \t\r\v\f]*\n)+")
_BLANK_END = re.compile(rb"\n[ \t\r\v\f]*\Z")


def block_pieces(chunks: Iterable[bytes]) -> Iterator[tuple[int, bytes, bool]]:
    """The blocks of the joined `chunks`, without blank lines and the line end before them.

    A block comes whole where it is short, else in pieces, so that about two chunks are held. White
    space longer than a chunk is never a blank line.

    Yields:
        (number of its first line, from 1; bytes; whether the block ends with them).
    """
    held, line, inside = b"", 1, False
    for chunk in chain(chunks, (None,)):
        held += chunk or b""
        at = 0
        while True:
            if not inside:
                first = _BLANK_LINES.match(held, at).end()  # type: ignore[union-attr] # may be empty
                line += held.count(b"\n", at, first)
                at = first
            gap = _GAP.search(held, at)
            if gap is None:
                break
            yield line, held[at : gap.start()].rstrip(b"\r\n"), True
            line += held.count(b"\n", at, gap.end())
            at, inside = gap.end(), False
        held = held[at:]
        if chunk is None:
            held = _BLANK_END.sub(b"", held).rstrip(b"\r\n")
            if inside or held.strip():
                yield line, held, True
            return
        # Whether the white space at the end is a blank line only the next chunk can say.
        known = len(held.rstrip(_SPACE))
        if len(held) - known >= CHUNK_BYTES:
            known = len(held)
        if known > CHUNK_BYTES or (inside and known):
            yield line, held[:known], False
            line += held.count(b"\n", 0, known)
            held, inside = held[known:], True


def rest_of_block(
    first: bytes, last: bool, pieces: Iterator[tuple[int, bytes, bool]]
) -> Iterator[bytes]:
    """`first` and what follows it in `pieces` up to the end of its block."""
    yield first
    while not last:
        _, piece, last = next(pieces)
        yield piece
