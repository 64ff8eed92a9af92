"""Reading phase of prepare: each part's documents are counted, split by content and spooled."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from roberta_dist.config.corpus import CorpusConfig
from roberta_dist.corpus.document import Document
from roberta_dist.corpus.filters import Drop, drop_reason
from roberta_dist.corpus.minhash import Sketcher
from roberta_dist.corpus.parts import part_name
from roberta_dist.corpus.pool import frozen_heap
from roberta_dist.corpus.sources import Unit, read_unit
from roberta_dist.corpus.split import content_digest, is_held_out, place_digest
from roberta_dist.corpus.spool import ORDINAL_BITS, PartSpool, part_spool
from roberta_dist.errors import DataFault
from roberta_dist.runtime.files import write_json
from roberta_dist.units import MIB

TRAIN = "train"
HELD_OUT = "held_out"


@dataclass
class ReadCounts:
    """What reading saw; `documents` includes duplicates, which are dropped later.

    Attributes:
        documents: read; each part of an over-long one counts.
        empty: dropped, whitespace only or null.
        too_short: dropped, fewer than `corpus.min_characters`.
        other_language: dropped, not in `corpus.languages`.
        ignored: tar members with another suffix; not in `documents`.
        cut: cuts made in over-long documents.
        repaired: kept, with U+FFFD in place of invalid Unicode.
    """

    documents: int = 0
    empty: int = 0
    too_short: int = 0
    other_language: int = 0
    ignored: int = 0
    cut: int = 0
    repaired: int = 0
    text_bytes: int = 0
    train: int = 0
    held_out: int = 0

    def __add__(self, other: ReadCounts) -> ReadCounts:
        names = [field.name for field in fields(self)]
        return ReadCounts(*(getattr(self, name) + getattr(other, name) for name in names))


@dataclass(frozen=True)
class PartJob:
    """One part to read.

    Attributes:
        folder: of all parts.
        buckets: of each split.
    """

    number: int
    units: tuple[Unit, ...]
    corpus: CorpusConfig
    folder: Path
    buckets: dict[str, int]

    @property
    def marker(self) -> Path:
        """Counts of the part; written last, so what stands beside it is complete."""
        return self.folder / f"{part_name(self.number)}.json"


def read_counts(marker: Path) -> ReadCounts:
    """What a complete part holds."""
    return ReadCounts(**json.loads(marker.read_text(encoding="utf-8")))


def read_part(job: PartJob) -> None:
    """Spool the documents of a part, then write its counts.

    A part stops at `corpus.max_mib` of its own text; where the parts before it are known to reach
    that together, nothing is read: the join would leave all of it out.

    Raises:
        DataFault: the source cannot be read.
        StorageError: the disk is full.
    """
    counts = ReadCounts()
    limit = job.corpus.max_mib * MIB or float("inf")
    path = job.folder / part_name(job.number)
    slots = sum(job.buckets.values())
    with frozen_heap(), part_spool(path, slots, job.corpus.near_duplicates) as spool:
        if not _is_beyond(job, limit):
            reader = _Reader(job, spool, counts)
            for unit in job.units:
                for ordinal, document in enumerate(read_unit(job.corpus, unit)):
                    if counts.text_bytes >= limit:
                        break
                    reader.take(unit, ordinal, document)
    write_json(job.marker, asdict(counts))


def _is_beyond(job: PartJob, limit: float) -> bool:
    """Whether the parts before this one are read and hold as much text as is wanted."""
    if limit == float("inf"):
        return False
    markers = [job.folder / f"{part_name(number)}.json" for number in range(job.number)]
    known = [read_counts(marker).text_bytes for marker in markers if marker.is_file()]
    return len(known) == len(markers) and sum(known) >= limit


class _Reader:
    """Takes the documents of one part."""

    def __init__(self, job: PartJob, spool: PartSpool, counts: ReadCounts) -> None:
        corpus = self._corpus = job.corpus
        self._salt, self._fraction = corpus.held_out_salt, corpus.held_out_fraction
        self._deduplicate = corpus.deduplicate
        self._train, self._held_out = job.buckets[TRAIN], job.buckets.get(HELD_OUT, 0)
        self._spool, self._counts = spool, counts
        self._sketcher = (
            Sketcher(corpus.near_duplicate_threshold) if corpus.near_duplicates else None
        )

    def take(self, unit: Unit, ordinal: int, document: Document) -> None:
        """Count a document and spool it with its place and position."""
        counts, text = self._counts, document.text
        reason = drop_reason(document, self._corpus)
        counts.documents += reason is not Drop.ignored
        counts.empty += reason is Drop.empty
        counts.too_short += reason is Drop.too_short
        counts.other_language += reason is Drop.other_language
        counts.ignored += reason is Drop.ignored
        counts.cut += document.part > 0
        if reason is not None:
            return
        if ordinal >> ORDINAL_BITS:
            raise DataFault(f"{unit.name}: more than 2**32 documents", "divide the file")
        position = unit.number << ORDINAL_BITS | ordinal
        digest = content_digest(text, self._salt)
        held_out = is_held_out(digest, self._fraction)
        place = place_digest(digest, None if self._deduplicate else position)
        raw = text.encode("utf-8")
        counts.repaired += document.repaired
        counts.text_bytes += len(raw)
        counts.held_out += held_out
        counts.train += not held_out
        count = self._held_out if held_out else self._train
        bucket = int.from_bytes(place[:8], "big") * count >> 64
        sketch = self._sketcher.sketch(text) if self._sketcher else b""
        self._spool.add(bucket + self._train * held_out, place, position, raw, sketch)
