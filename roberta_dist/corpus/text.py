"""Sources `text` and `jsonl`: files, plain, gzip or zstandard, become documents."""

from __future__ import annotations

import glob
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from roberta_dist.config.corpus import DocumentUnit
from roberta_dist.errors import ConfigError, DataFault
from roberta_dist.units import KIB, MIB

JSONL_SUFFIXES = (".jsonl", ".ndjson", ".json")
COMPRESSED_SUFFIXES = (".gz", ".zst")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        id: where it came from, for messages.
        text: valid Unicode; NUL and literal special tokens are kept.
        repaired: invalid UTF-8 or lone surrogates were replaced by U+FFFD.
    """

    id: str
    text: str
    repaired: bool = False


def decode(raw: bytes) -> tuple[str, bool]:
    """UTF-8 text, with U+FFFD for what is not UTF-8, and whether there was any."""
    try:
        return raw.decode("utf-8"), False
    except UnicodeDecodeError:
        return raw.decode("utf-8", errors="replace"), True


def replace_surrogates(text: str) -> tuple[str, bool]:
    """Text that UTF-8 can hold: JSON and Python literals may spell lone surrogates."""
    try:
        text.encode("utf-8")
        return text, False
    except UnicodeEncodeError:
        return _SURROGATE.sub("\ufffd", text), True


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
        matches = [Path(path)] if Path(path).exists() else [Path(p) for p in glob.glob(path)]
        files = [file for match in matches for file in _expand(match, suffixes)]
        if not files:
            raise ConfigError(
                f"corpus.paths: {path} matches no file"
                + (f" ending in {', '.join(suffixes)}" if suffixes else ""),
                "give files, folders or glob patterns that exist",
            )
        found.update(files)
    return sorted(found)


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


def _open(path: Path) -> BinaryIO:
    if path.suffix.lower() == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if path.suffix.lower() == ".zst":
        return io.BufferedReader(_ZstdFile(path), buffer_size=MIB)
    return open(path, "rb")


def _lines(path: Path) -> Iterator[bytes]:
    """Lines of a file, the byte-order mark taken off."""
    try:
        with closing(_open(path)) as handle:
            for number, line in enumerate(handle):
                yield line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise DataFault(f"{path}: cannot be read ({error})", "repair or remove the file") from error


def read_text(path: Path, unit: DocumentUnit) -> Iterator[Document]:
    """Documents of a text file: the whole file, or what stands between blank lines.

    Raises:
        DataFault: the file cannot be read or decompressed.
    """
    if unit is DocumentUnit.file:
        yield _document(str(path), b"".join(_lines(path)))
        return
    block: list[bytes] = []
    first = 1
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            if not block:
                first = number
            block.append(line)
        elif block:
            yield _document(f"{path}:{first}", b"".join(block).rstrip(b"\r\n"))
            block = []
    if block:
        yield _document(f"{path}:{first}", b"".join(block).rstrip(b"\r\n"))


def _document(name: str, raw: bytes) -> Document:
    text, repaired = decode(raw)
    return Document(name, text, repaired)


def read_jsonl(path: Path, text_field: str) -> Iterator[Document]:
    """One document a line, the string under `text_field`; blank lines are passed over.

    Raises:
        DataFault: a line that is not a JSON object with that string, or an unreadable file.
    """
    for number, raw in enumerate(_lines(path), start=1):
        if not raw.strip():
            continue
        line, invalid_utf8 = decode(raw)
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataFault(
                f"{path}:{number}: not JSON ({error})", "repair or remove the line"
            ) from error
        if not isinstance(values, dict) or not isinstance(values.get(text_field), str):
            has = f"has {sorted(values)[:8]}" if isinstance(values, dict) else "is no object"
            raise DataFault(
                f"{path}:{number}: no string under corpus.text_field={text_field}; the line {has}",
                "give corpus.text_field=NAME",
            )
        text, surrogates = replace_surrogates(values[text_field])
        yield Document(f"{path}:{number}", text, invalid_utf8 or surrogates)


def read_files(
    files: list[Path], read: Callable[[Path], Iterator[Document]], advance: Callable[[int], object]
) -> Generator[Document, None, None]:
    """Documents of all files in order; `advance` is told each file's bytes once it is read."""
    for path in files:
        yield from read(path)
        advance(path.stat().st_size)
