"""Sources `text` and `jsonl`: files, plain, gzip or zstandard, become documents."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from roberta_dist.config.corpus import DocumentUnit
from roberta_dist.corpus.blocks import block_pieces, rest_of_block
from roberta_dist.corpus.document import (
    CHUNK_BYTES,
    Document,
    cut_document,
    decode,
    documents_of,
    replace_surrogates,
)
from roberta_dist.corpus.files import read_chunks, read_lines, read_pieces
from roberta_dist.errors import DataFault

JSONL_SUFFIXES = (".jsonl", ".ndjson", ".json")


def read_text(
    path: Path, unit: DocumentUnit, limit: int, start: int = 0, end: int | None = None
) -> Iterator[Document]:
    """Documents of a text file: the whole file, each line, or what stands between blank lines.

    Args:
        path: the file.
        unit: what one document is.
        limit: bytes; a longer document comes in parts.
        start: for lines, read those that start in [start, end) of the bytes.
        end: see `start`.

    Raises:
        DataFault: the file cannot be read or decompressed.
    """
    if unit is DocumentUnit.file:
        yield from documents_of(str(path), read_chunks(path), limit)
        return
    if unit is DocumentUnit.blank_line:
        pieces = block_pieces(read_chunks(path))
        for line, piece, last in pieces:
            yield from documents_of(f"{path}:{line}", rest_of_block(piece, last, pieces), limit)
        return
    lines = _Lines(path, start, end)
    while (name := lines.next_name()) is not None:
        yield from documents_of(name, lines.chunks(), limit)


class _Lines:
    """Lines of a file that are not blank, streamed: at any time about one piece of a line is held.

    A line longer than a piece is never blank.
    """

    def __init__(self, path: Path, start: int, end: int | None) -> None:
        self._name = _line_name(path, start, end)
        self._pieces = read_pieces(path, start, end)
        self._number = 0
        self._ahead: tuple[int, bytes, bool] | None = None
        self._step()

    def _step(self) -> None:
        self._ahead = next(self._pieces, None)
        self._number += self._ahead is not None and self._ahead[2]

    def _blank(self) -> bool:
        assert self._ahead is not None
        _, piece, begins = self._ahead
        return begins and not piece.strip() and len(piece) < CHUNK_BYTES

    def next_name(self) -> str | None:
        """The name of the next line; None at the end."""
        while self._ahead is not None and self._blank():
            self._step()
        return None if self._ahead is None else self._name(self._number, self._ahead[0])

    def chunks(self) -> Iterator[bytes]:
        """The bytes of the line, without its end."""
        line_end = b""
        first = True
        while self._ahead is not None:
            _, piece, begins = self._ahead
            if begins and not first:
                return
            body = piece.rstrip(b"\r\n")
            if body:
                yield line_end + body
                line_end = b""
            line_end += piece[len(body) :]
            first = False
            self._step()


def _line_name(path: Path, start: int, end: int | None) -> Callable[[int, int], str]:
    """(line number, byte offset) → `path:line`; `path@byte` in a range, which sees no numbers."""
    if start == 0 and end is None:
        return lambda number, offset: f"{path}:{number}"
    return lambda number, offset: f"{path}@{offset}"


def read_jsonl(
    path: Path,
    text_field: str,
    language_field: str | None,
    limit: int,
    start: int = 0,
    end: int | None = None,
) -> Iterator[Document]:
    """One document a line, the string under `text_field`; blank lines are passed over.

    Args:
        path: the file.
        text_field: null there is an empty document.
        language_field: where the language is, if it is asked for.
        limit: bytes; a longer document comes in parts.
        start: read lines that start in [start, end) of the bytes.
        end: see `start`.

    Raises:
        DataFault: a line that is not a JSON object with that string, or an unreadable file.
    """
    name = _line_name(path, start, end)
    for number, (offset, raw) in enumerate(read_lines(path, start, end), start=1):
        if raw.strip():
            yield from cut_document(
                json_document(name(number, offset), raw, text_field, language_field), limit
            )


def json_document(name: str, raw: bytes, text_field: str, language_field: str | None) -> Document:
    """The document in one JSON object.

    Raises:
        DataFault: not JSON, no object, or without the fields.
    """
    values, invalid_utf8 = json_object(name, raw)
    if text_field not in values or not isinstance(values[text_field], str | None):
        raise DataFault(
            f"{name}: no string under corpus.text_field={text_field}; "
            f"the object has {sorted(values)[:8]}",
            "give corpus.text_field=NAME",
        )
    text, surrogates = replace_surrogates(values[text_field] or "")
    language = json_language(name, values, language_field)
    return Document(name, text, invalid_utf8 or surrogates, language=language)


def json_object(name: str, raw: bytes) -> tuple[dict[str, Any], bool]:
    """The object, and whether its UTF-8 had to be repaired.

    Raises:
        DataFault: not JSON, or no object.
    """
    line, invalid_utf8 = decode(raw)
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataFault(f"{name}: not JSON ({error})", "repair or remove it") from error
    if not isinstance(values, dict):
        raise DataFault(
            f"{name}: {type(values).__name__}, not a JSON object", "repair or remove it"
        )
    return values, invalid_utf8


def json_language(name: str, values: dict[str, Any], language_field: str | None) -> str | None:
    """The value of the language field, if it is asked for.

    Raises:
        DataFault: the object does not have it.
    """
    if language_field is None:
        return None
    if language_field not in values:
        raise DataFault(
            f"{name}: nothing under corpus.language_field={language_field}; "
            f"the object has {sorted(values)[:8]}",
            "give corpus.language_field=NAME, or null to take every language",
        )
    value = values[language_field]
    return None if value is None else str(value)
