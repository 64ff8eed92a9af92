"""Source files: found, opened through gzip or zstandard, read in bounded pieces and line ranges."""

from __future__ import annotations

import glob
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from roberta_dist.corpus.document import CHUNK_BYTES
from roberta_dist.errors import ConfigError, DataFault
from roberta_dist.units import KIB, MIB, human_bytes

COMPRESSED_SUFFIXES = (".gz", ".zst")
MAX_RECORD_BYTES = 256 * MIB
"""A JSON line, table row or tar member must be held whole, about four times; a longer one is an
error."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def find_files(paths: list[str], suffixes: tuple[str, ...] = ()) -> list[Path]:
    """Files named, matched by a pattern, or below a folder; sorted, each once.

    Args:
        paths: files, folders or glob patterns.
        suffixes: endings (before .gz or .zst) taken from folders; empty takes every file whose
            name does not begin with a dot.

    Raises:
        ConfigError: a path that matches nothing.
    """
    found: set[Path] = set()
    for path in paths:
        files = [file for match in match_paths(path) for file in _expand(match, suffixes)]
        if not files:
            raise ConfigError(
                f"corpus.paths: {path} matches no file"
                + (f" ending in {', '.join(suffixes)}" if suffixes else ""),
                "give files, folders or glob patterns that exist",
            )
        found.update(files)
    return sorted(found)


def match_paths(path: str) -> list[Path]:
    """The path itself, or what it matches as a glob pattern."""
    return [Path(path)] if Path(path).exists() else [Path(p) for p in glob.glob(path)]


def _expand(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = [p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")]
    if suffixes:
        files = [p for p in files if _plain_name(p).endswith(suffixes)]
    return files


def _plain_name(path: Path) -> str:
    name = path.name.lower()
    return path.stem.lower() if name.endswith(COMPRESSED_SUFFIXES) else name


class _ZstdFile(io.RawIOBase):
    """All frames of a .zst file. The library's own reader stops after the first frame and takes a
    file that was cut short for a complete one."""

    def __init__(self, path: Path) -> None:
        self._file = io.FileIO(path)
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._started = False
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, target: Any) -> int:
        """Raises EOFError where the file ends inside a frame."""
        while not self._ready:
            data = self._frame.unused_data if self._frame.eof else b""
            data = data or self._file.read(64 * KIB)
            if not data:
                if self._started and not self._frame.eof:
                    raise EOFError("the file ends inside a compressed frame")
                return 0
            if self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._started = True
            self._ready = memoryview(self._frame.decompress(data))
        count = min(len(target), len(self._ready))
        target[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


def open_binary(path: Path) -> BinaryIO:
    """The decompressed bytes of a file."""
    if path.suffix.lower() in (".gz", ".tgz"):
        return cast(BinaryIO, gzip.open(path, "rb"))
    if path.suffix.lower() == ".zst":
        return io.BufferedReader(_ZstdFile(path), buffer_size=MIB)
    return open(path, "rb")


@contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turn what opening, reading or decompressing raises into a DataFault that names `path`."""
    try:
        yield
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise DataFault(f"{path}: cannot be read ({error})", "repair or remove the file") from error


def read_chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file in chunks, the byte-order mark taken off.

    Raises:
        DataFault: the file cannot be read or decompressed.
    """
    with read_errors(path), closing(open_binary(path)) as handle:
        first = handle.read(CHUNK_BYTES).removeprefix(BYTE_ORDER_MARK)
        yield first
        while chunk := handle.read(CHUNK_BYTES):
            yield chunk


def read_pieces(
    path: Path, start: int = 0, end: int | None = None
) -> Iterator[tuple[int, bytes, bool]]:
    """Lines that start in [start, end) of the decompressed bytes, in pieces of at most 1 MiB.

    The byte-order mark is taken off. Ranges that share their ends share the lines out: each is read
    by exactly one.

    Yields:
        (offset of the line, bytes, whether they begin the line).

    Raises:
        DataFault: the file cannot be read or decompressed.
    """
    with read_errors(path), closing(open_binary(path)) as handle:
        at = _first_line(handle, start)
        line, begins = at, True
        while (end is None or line < end) and (piece := handle.readline(CHUNK_BYTES)):
            at += len(piece)
            mark = begins and line == 0
            yield line, piece.removeprefix(BYTE_ORDER_MARK) if mark else piece, begins
            begins = piece.endswith(b"\n")
            line = at if begins else line


def _first_line(handle: BinaryIO, start: int) -> int:
    """Go to the first line that starts at or after `start`; its offset."""
    if start == 0:
        return 0
    at = start - 1
    handle.seek(at)
    while piece := handle.readline(CHUNK_BYTES):
        at += len(piece)
        if piece.endswith(b"\n"):
            break
    return at


def read_lines(
    path: Path, start: int = 0, end: int | None = None, most: int = MAX_RECORD_BYTES
) -> Iterator[tuple[int, bytes]]:
    """Whole lines that start in [start, end), each with its offset.

    Raises:
        DataFault: the file cannot be read, or a line is longer than `most`.
    """
    held: list[bytes] = []
    size = offset = 0
    for line, piece, begins in read_pieces(path, start, end):
        if begins and held:
            yield offset, held[0] if len(held) == 1 else b"".join(held)
            held, size = [], 0
        offset = line
        held.append(piece)
        size += len(piece)
        if size > most:
            raise DataFault(
                f"{path}: the line at byte {offset} is longer than {human_bytes(most)}",
                "break it up, or read the file with corpus=text",
            )
    if held:
        yield offset, b"".join(held)
