"""One view of all sources: which files, how much, in which units, and their documents in order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from roberta_dist.config.corpus import CorpusConfig, DocumentUnit, Source
from roberta_dist.corpus.docstrings import find_documentation, read_documentation
from roberta_dist.corpus.document import Document, cut_document
from roberta_dist.corpus.files import COMPRESSED_SUFFIXES, find_files
from roberta_dist.corpus.text import JSONL_SUFFIXES, read_jsonl, read_text
from roberta_dist.units import MIB

DOCSTRINGS_TEXT_BYTES = 32 * MIB
"""About what documentation of an environment with this project's dependencies comes to."""
COMPRESSION = 4
UNIT_BYTES = 256 * MIB
"""Where large files of lines are cut; fixed, so that it does not depend on who reads them."""


@dataclass(frozen=True)
class Unit:
    """An independently readable part of a source.

    Attributes:
        number: place in source order.
        name: of the file; no machine path for the embedded source.
        path: the file.
        start: first byte, for files of lines; the lines that start in [start, end) belong to it.
        end: one past the last; None: the unit is the whole file.
        size: bytes on disk, for progress.
    """

    number: int
    name: str
    path: Path
    start: int
    end: int | None
    size: int


@dataclass(frozen=True)
class SourceFiles:
    """Files of a source, in reading order.

    Attributes:
        files: (name, path, bytes).
        units: what they are read by; a function of the files alone.
        text_bytes: estimate of the text in them, before anything is read.
    """

    config: CorpusConfig
    files: tuple[tuple[str, Path, int], ...]
    units: tuple[Unit, ...]
    text_bytes: float

    def fingerprint(self, with_times: bool) -> str:
        """Hash of names and sizes; with times it also sees an edit that keeps the size."""
        rows = [
            [name, size, path.stat().st_mtime_ns if with_times else 0]
            for name, path, size in self.files
        ]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def documents(self, unit: Unit) -> Iterator[Document]:
        """See `read_unit`."""
        return read_unit(self.config, unit)


def read_unit(config: CorpusConfig, unit: Unit) -> Iterator[Document]:
    """The documents of `unit` in order, none longer than `corpus.max_document_mib`; not filtered.

    Raises:
        ConfigError: a library that this source needs is not installed.
        DataFault: a file that cannot be read, or a record that is not what it should be.
    """
    limit = int(config.max_document_mib * MIB)
    if config.source is Source.docstrings:
        for document in read_documentation((unit.name, unit.path)):
            yield from cut_document(document, limit)
    elif config.source is Source.jsonl:
        yield from read_jsonl(
            unit.path, config.text_field, config.language_field, limit, unit.start, unit.end
        )
    else:
        yield from read_text(unit.path, config.document, limit, unit.start, unit.end)


def open_source(config: CorpusConfig) -> SourceFiles:
    """Find the files; nothing is read yet.

    Raises:
        ConfigError: a path that matches no file.
    """
    found = _find(config)
    files = tuple((name, path, path.stat().st_size) for name, path in found)
    units = tuple(
        Unit(number, *part)
        for number, part in enumerate(
            part for name, path, size in files for part in _parts(config, name, path, size)
        )
    )
    text_bytes = _estimate(config, files)
    if config.max_mib:
        text_bytes = min(text_bytes, config.max_mib * MIB)
    return SourceFiles(config, files, units, text_bytes)


def _find(config: CorpusConfig) -> list[tuple[str, Path]]:
    if config.source is Source.docstrings:
        return find_documentation()
    suffixes = JSONL_SUFFIXES if config.source is Source.jsonl else ()
    return [(str(path), path) for path in find_files(config.paths, suffixes)]


def _parts(
    config: CorpusConfig, name: str, path: Path, size: int
) -> Iterator[tuple[str, Path, int, int | None, int]]:
    """(name, path, start, end, size) of the units of one file."""
    by_line = config.source is Source.jsonl or (
        config.source is Source.text and config.document is DocumentUnit.line
    )
    if not by_line or size <= UNIT_BYTES or name.lower().endswith(COMPRESSED_SUFFIXES):
        yield name, path, 0, None, size
        return
    for start in range(0, size, UNIT_BYTES):
        end = min(size, start + UNIT_BYTES)
        yield name, path, start, end, end - start


def _estimate(config: CorpusConfig, files: tuple[tuple[str, Path, int], ...]) -> float:
    if config.source is Source.docstrings:
        return DOCSTRINGS_TEXT_BYTES
    return sum(
        size * (COMPRESSION if name.lower().endswith(COMPRESSED_SUFFIXES) else 1)
        for name, _, size in files
    )
