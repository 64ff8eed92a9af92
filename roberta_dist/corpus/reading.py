"""Reading phase of prepare: documents are counted, split by content and spooled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from roberta_dist.config.corpus import CorpusConfig
from roberta_dist.corpus.document import Document
from roberta_dist.corpus.filters import Drop, drop_reason
from roberta_dist.corpus.sources import SourceFiles
from roberta_dist.corpus.split import content_digest, is_held_out, place_digest
from roberta_dist.corpus.spool import Spool
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


def spool_documents(
    source: SourceFiles, corpus: CorpusConfig, folder: Path, buckets: dict[str, int], progress: bool
) -> ReadCounts:
    """Read every document into its bucket, up to `corpus.max_mib` of text.

    Raises:
        DataFault: the source cannot be read.
        StorageError: the disk is full.
    """
    counts = ReadCounts()
    spool = Spool(folder, buckets)
    limit = corpus.max_mib * MIB or float("inf")
    total = sum(unit.size for unit in source.units)
    bar = tqdm(
        total=total, desc="reading", unit="B", unit_scale=True, disable=not progress
    )  # fmt: skip
    with bar:
        for unit in source.units:
            for document in source.documents(unit):
                if counts.text_bytes >= limit:
                    break
                if _count(counts, document, corpus):
                    _add(spool, corpus, counts, document.text)
            if counts.text_bytes >= limit:
                break
            bar.update(unit.size)
    spool.close()
    return counts


def _count(counts: ReadCounts, document: Document, corpus: CorpusConfig) -> bool:
    """Whether the document is kept."""
    reason = drop_reason(document, corpus)
    counts.documents += reason is not Drop.ignored
    counts.empty += reason is Drop.empty
    counts.too_short += reason is Drop.too_short
    counts.other_language += reason is Drop.other_language
    counts.ignored += reason is Drop.ignored
    counts.cut += document.part > 0
    counts.repaired += reason is None and document.repaired
    return reason is None


def _add(spool: Spool, corpus: CorpusConfig, counts: ReadCounts, text: str) -> None:
    digest = content_digest(text, corpus.held_out_salt)
    held_out = is_held_out(digest, corpus.held_out_fraction)
    place = place_digest(digest, 0 if corpus.deduplicate else counts.documents)
    raw = text.encode("utf-8")
    counts.text_bytes += len(raw)
    counts.held_out += held_out
    counts.train += not held_out
    spool.add(HELD_OUT if held_out else TRAIN, place, raw)
