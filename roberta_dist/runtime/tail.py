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


def offset_of_last(path: Path, count: int) -> int:
    """Where the last `count` lines begin, in bytes; one without its newline yet is a line too."""
    with open(path, "rb") as handle:
        end = position = handle.seek(0, os.SEEK_END)
        missing = count
        while position > 0:
            size = min(BLOCK, position)
            position -= size
            handle.seek(position)
            block = handle.read(size)
            index = block.rfind(b"\n")
            while index >= 0:
                if position + index + 1 < end:  # the very last newline ends a line, it begins none
                    missing -= 1
                    if missing == 0:
                        return position + index + 1
                index = block.rfind(b"\n", 0, index)
        return 0


def last_lines(path: Path, count: int) -> list[str]:
    """The last `count` lines, in their order; bytes that are no UTF-8 are replaced."""
    lines: list[bytes] = []
    for line in lines_backwards(path):
        if len(lines) >= count:
            break
        lines.append(line)
    return [line.decode("utf-8", "replace") for line in reversed(lines)]
