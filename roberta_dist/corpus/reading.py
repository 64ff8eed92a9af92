"""Reading phase of prepare: documents are counted, split by content and spooled."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from roberta_dist.config.corpus import CorpusConfig, Source
from roberta_dist.corpus.sources import SourceFiles
from roberta_dist.corpus.split import content_digest, is_held_out, place_digest
from roberta_dist.corpus.spool import Spool
from roberta_dist.units import MIB

TRAIN = "train"
HELD_OUT = "held_out"


@dataclass
class ReadCounts:
    """What reading saw; `documents` includes duplicates, which are dropped later."""

    documents: int = 0
    empty: int = 0
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
    by_file = corpus.source is Source.docstrings
    bar = tqdm(
        total=source.progress_total,
        desc="reading",
        unit="file" if by_file else "B",
        unit_scale=not by_file,
        disable=not progress,
    )
    with bar, closing(source.documents(bar.update)) as documents:
        for document in documents:
            if counts.text_bytes >= limit:
                break
            counts.documents += 1
            if not document.text.strip():
                counts.empty += 1
                continue
            counts.repaired += document.repaired
            _add(spool, corpus, counts, document.text)
    spool.close()
    return counts


def _add(spool: Spool, corpus: CorpusConfig, counts: ReadCounts, text: str) -> None:
    digest = content_digest(text, corpus.held_out_salt)
    held_out = is_held_out(digest, corpus.held_out_fraction)
    place = place_digest(digest, 0 if corpus.deduplicate else counts.documents)
    raw = text.encode("utf-8")
    counts.text_bytes += len(raw)
    counts.held_out += held_out
    counts.train += not held_out
    spool.add(HELD_OUT if held_out else TRAIN, place, raw)
