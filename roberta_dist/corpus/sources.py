"""One view of the three sources: which files, how much, and their documents in order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from roberta_dist.config.corpus import CorpusConfig, Source
from roberta_dist.corpus.docstrings import find_documentation, read_docstrings
from roberta_dist.corpus.text import (
    COMPRESSED_SUFFIXES,
    JSONL_SUFFIXES,
    Document,
    find_files,
    read_files,
    read_jsonl,
    read_text,
)
from roberta_dist.units import MIB

DOCSTRINGS_TEXT_BYTES = 32 * MIB
"""About what documentation of an environment with this project's dependencies comes to."""
COMPRESSION = 4
Advance = Callable[[int], object]


@dataclass(frozen=True)
class SourceFiles:
    """Files of a source, in reading order.

    Attributes:
        files: (name, path); names have no machine path for the embedded source.
        sizes: bytes of each file.
        text_bytes: estimate of the text in them, before anything is read.
        progress_total: what `advance` calls of `documents` will add up to.
    """

    config: CorpusConfig
    files: list[tuple[str, Path]]
    sizes: list[int]
    text_bytes: float
    progress_total: int

    def fingerprint(self, with_times: bool) -> str:
        """Hash of names and sizes; with times it also sees an edit that keeps the size."""
        rows = [
            [name, size, path.stat().st_mtime_ns if with_times else 0]
            for (name, path), size in zip(self.files, self.sizes, strict=True)
        ]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def documents(self, advance: Advance) -> Generator[Document, None, None]:
        """All documents in order; `advance` is told of progress.

        Raises:
            DataFault: a file that cannot be read, or a line that is not what it should be.
        """
        config = self.config
        if config.source is Source.docstrings:
            return read_docstrings(self.files, config.workers, advance)
        paths = [path for _, path in self.files]
        if config.source is Source.jsonl:
            return read_files(paths, partial(read_jsonl, text_field=config.text_field), advance)
        return read_files(paths, partial(read_text, unit=config.document), advance)


def open_source(config: CorpusConfig) -> SourceFiles:
    """Find the files; nothing is read yet.

    Raises:
        ConfigError: a path that matches no file.
    """
    if config.source is Source.docstrings:
        files = find_documentation()
        sizes = [path.stat().st_size for _, path in files]
        text_bytes: float = DOCSTRINGS_TEXT_BYTES
        total = len(files)
    else:
        suffixes = JSONL_SUFFIXES if config.source is Source.jsonl else ()
        files = [(str(path), path) for path in find_files(config.paths, suffixes)]
        sizes = [path.stat().st_size for _, path in files]
        text_bytes = sum(
            size * (COMPRESSION if name.endswith(COMPRESSED_SUFFIXES) else 1)
            for (name, _), size in zip(files, sizes, strict=True)
        )
        total = sum(sizes)
    if config.max_mib:
        text_bytes = min(text_bytes, config.max_mib * MIB)
    return SourceFiles(config, files, sizes, text_bytes, total)
