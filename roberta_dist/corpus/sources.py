"""One view of all sources: which files, how much, in which units, and their documents in order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from roberta_dist.config.corpus import CorpusConfig, DocumentUnit, Source
from roberta_dist.corpus.arrow import (
    PARQUET_SUFFIXES,
    find_datasets,
    read_arrow,
    read_parquet,
    row_group_bytes,
)
from roberta_dist.corpus.docstrings import find_documentation, read_documentation
from roberta_dist.corpus.document import Document, cut_document
from roberta_dist.corpus.files import COMPRESSED_SUFFIXES, find_files
from roberta_dist.corpus.tables import CSV_SUFFIXES, read_csv
from roberta_dist.corpus.tars import TAR_SUFFIXES, read_tar
from roberta_dist.corpus.text import JSONL_SUFFIXES, read_jsonl, read_text
from roberta_dist.units import MIB

DOCSTRINGS_TEXT_BYTES = 32 * MIB
"""About what documentation of an environment with this project's dependencies comes to."""
COMPRESSION = 4
UNIT_BYTES = 256 * MIB
"""Where large files of lines are cut; fixed, so that it does not depend on who reads them."""
_SUFFIXES = {
    Source.jsonl: JSONL_SUFFIXES,
    Source.csv: CSV_SUFFIXES,
    Source.parquet: PARQUET_SUFFIXES,
    Source.webdataset: TAR_SUFFIXES,
}
"""What is taken from folders."""


@dataclass(frozen=True)
class Unit:
    """An independently readable part of a source.

    Attributes:
        number: place in source order.
        name: of the file; no machine path for the embedded source.
        path: the file.
        start: first byte, for files of lines, whose lines that start in [start, end) belong to the
            unit; first row group, for parquet.
        end: one past the last; None: to the end of the file.
        size: bytes on disk, or of uncompressed text for parquet: for progress.
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
    path, start, end = unit.path, unit.start, unit.end
    if config.source is Source.docstrings:
        return (
            part
            for document in read_documentation((unit.name, path))
            for part in cut_document(document, limit)
        )
    if config.source is Source.jsonl:
        return read_jsonl(path, config.text_field, config.language_field, limit, start, end)
    if config.source is Source.csv:
        return read_csv(path, config, limit)
    if config.source is Source.parquet:
        return read_parquet(path, config, limit, start, end)
    if config.source is Source.hf_dataset:
        return read_arrow(path, config, limit)
    if config.source is Source.webdataset:
        return read_tar(path, config, limit)
    return read_text(path, config.document, limit, start, end)


def open_source(config: CorpusConfig) -> SourceFiles:
    """Find the files; nothing is read yet but the footers of parquet files.

    Raises:
        ConfigError: a path that matches no file, or a missing library.
        DataFault: a parquet file without footer or column, a damaged dataset folder.
    """
    found = _find(config)
    files = tuple((name, path, path.stat().st_size) for name, path in found)
    units = tuple(
        Unit(number, name, path, *part)
        for number, (name, path, part) in enumerate(
            (name, path, part) for name, path, size in files for part in _parts(config, path, size)
        )
    )
    text_bytes = _estimate(config, units)
    if config.max_mib:
        text_bytes = min(text_bytes, config.max_mib * MIB)
    return SourceFiles(config, files, units, text_bytes)


def _find(config: CorpusConfig) -> list[tuple[str, Path]]:
    if config.source is Source.docstrings:
        return find_documentation()
    if config.source is Source.hf_dataset:
        return [(str(path), path) for path in find_datasets(config.paths, config.split)]
    suffixes = _SUFFIXES.get(config.source, ())
    return [(str(path), path) for path in find_files(config.paths, suffixes)]


def _parts(config: CorpusConfig, path: Path, size: int) -> Iterator[tuple[int, int | None, int]]:
    """(start, end, size) of the units of one file."""
    by_line = config.source is Source.jsonl or (
        config.source is Source.text and config.document is DocumentUnit.line
    )
    if config.source is Source.parquet:
        yield from _row_groups(row_group_bytes(path, config.text_field))
    elif by_line and size > UNIT_BYTES and not _compressed(path):
        for start in range(0, size, UNIT_BYTES):
            end = min(size, start + UNIT_BYTES)
            yield start, end, end - start
    else:
        yield 0, None, size


def _row_groups(sizes: list[int]) -> Iterator[tuple[int, int | None, int]]:
    """Runs of row groups of at least UNIT_BYTES of text, but for the last."""
    start = size = 0
    for group, more in enumerate(sizes):
        size += more
        if size >= UNIT_BYTES or group + 1 == len(sizes):
            yield start, group + 1, size
            start, size = group + 1, 0


def _compressed(path: Path) -> bool:
    return path.name.lower().endswith((*COMPRESSED_SUFFIXES, ".tgz"))


def _estimate(config: CorpusConfig, units: tuple[Unit, ...]) -> float:
    if config.source is Source.docstrings:
        return DOCSTRINGS_TEXT_BYTES
    return sum(unit.size * (COMPRESSION if _compressed(unit.path) else 1) for unit in units)
