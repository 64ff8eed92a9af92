"""The end of a text file that may be long and may still be written to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

BLOCK = 64 * 1024


def lines_backwards(path: Path) -> Iterator[bytes]:
    """Lines from the last to the first, without their newlines.

    Only what is asked for is read. What stands behind the last newline is no line yet.
    """
    with open(path, "rb") as handle:
        position, rest = handle.seek(0, os.SEEK_END), b""
        complete = False
        while position > 0:
            size = min(BLOCK, position)
            position -= size
            handle.seek(position)
            pieces = (handle.read(size) + rest).split(b"\n")
            rest = pieces[0]
            for piece in reversed(pieces[1:]):
                if complete:
                    yield piece
                complete = True
        if complete:
            yield rest


def last_lines(path: Path, count: int) -> list[str]:
    """The last `count` lines, in their order; bytes that are no UTF-8 are replaced."""
    lines: list[bytes] = []
    for line in lines_backwards(path):
        if len(lines) >= count:
            break
        lines.append(line)
    return [line.decode("utf-8", "replace") for line in reversed(lines)]
