"""Source `csv`: rows of comma- or tab-separated files with a header become documents."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from roberta_dist.config.corpus import CorpusConfig
from roberta_dist.corpus.document import Document, cut_document, decode
from roberta_dist.corpus.files import MAX_RECORD_BYTES, read_lines
from roberta_dist.errors import DataFault

CSV_SUFFIXES = (".csv", ".tsv", ".tab")


class _Lines:
    """Decoded lines for csv.reader, which asks for as many as a row has."""

    def __init__(self, path: Path) -> None:
        self._lines = read_lines(path)
        self.repaired = False

    def __iter__(self) -> Iterator[str]:
        for _, raw in self._lines:
            line, repaired = decode(raw)
            self.repaired |= repaired
            yield line


def read_csv(path: Path, config: CorpusConfig, limit: int) -> Iterator[Document]:
    """One document a row, from the column `corpus.text_field`; an empty field is an empty document.

    Args:
        path: the file, plain, gzip or zstandard; its first row names the columns.
        config: names, delimiter and quoting.
        limit: bytes; a longer document comes in parts.

    Raises:
        DataFault: an unreadable file, a missing column, a row with more or fewer fields than the
            header, a quote that is not closed.
    """
    csv.field_size_limit(MAX_RECORD_BYTES)
    lines = _Lines(path)
    rows = csv.reader(
        lines,
        delimiter=config.delimiter,
        quoting=csv.QUOTE_MINIMAL if config.quoted else csv.QUOTE_NONE,
        strict=True,
    )
    try:
        header = next(rows, None)
        if header is None:
            return
        text = _column(path, header, config.text_field, "corpus.text_field")
        language = None
        if config.language_field is not None:
            language = _column(path, header, config.language_field, "corpus.language_field")
        lines.repaired = False
        first = rows.line_num + 1
        for row in rows:
            if row:
                name = f"{path}:{first}"
                _check_width(name, row, header)
                value = None if language is None else row[language]
                yield from cut_document(
                    Document(name, row[text], lines.repaired, language=value), limit
                )
            lines.repaired = False
            first = rows.line_num + 1
    except csv.Error as error:
        raise DataFault(
            f"{path}:{rows.line_num}: not a table ({error})",
            "repair the row; where quotes are plain text, give corpus.quoted=false",
        ) from error


def _column(path: Path, header: list[str], name: str, key: str) -> int:
    if header.count(name) != 1:
        found = "no column" if name not in header else "more than one column"
        raise DataFault(
            f"{path}: {found} {key}={name}; the header has {header[:20]}",
            f"give {key}=NAME; for another separator corpus.delimiter",
        )
    return header.index(name)


def _check_width(name: str, row: list[str], header: list[str]) -> None:
    if len(row) != len(header):
        raise DataFault(
            f"{name}: {len(row)} fields, the header has {len(header)}",
            "repair the row; look at corpus.delimiter and corpus.quoted",
        )
