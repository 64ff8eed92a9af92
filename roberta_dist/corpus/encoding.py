"""Encoding phase of prepare: each bucket becomes one shard, in parallel and restartable."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roberta_dist.corpus.bpe import load_bpe
from roberta_dist.corpus.encode import Encoded, Encoder
from roberta_dist.corpus.gather import Selection, bucket_rows, bucket_texts, drop_copies
from roberta_dist.corpus.join import is_dropped
from roberta_dist.corpus.manifest import PACK_DTYPE, Shard
from roberta_dist.corpus.pool import frozen_heap
from roberta_dist.corpus.sentences import Splitter
from roberta_dist.corpus.shards import build_packs, write_shard
from roberta_dist.corpus.statistics import Statistics
from roberta_dist.errors import DataFault
from roberta_dist.runtime.files import atomic_write


@dataclass(frozen=True)
class ShardJob:
    """One bucket to encode.

    Attributes:
        output: CORPUS.
        selection: the parts to gather from.
        drops: list of near duplicates.
        done: folder of the results; a result there means the shard is complete.
        pack_tokens: most tokens in a pack.
        split_language: language of the sentence splitter; None ends sentences at line breaks.
    """

    split: str
    bucket: int
    output: Path
    selection: Selection
    drops: Path
    done: Path
    pack_tokens: int
    deduplicate: bool
    split_language: str | None

    @property
    def name(self) -> str:
        """`train-000003`."""
        return f"{self.split}-{self.bucket:06d}"

    @property
    def shard(self) -> Path:
        """The tar file."""
        return self.output / self.split / f"shard-{self.bucket:06d}.tar"

    @property
    def result(self) -> Path:
        """What the merge needs to know of the shard."""
        return self.done / f"{self.name}.npz"


@dataclass
class ShardResult:
    """A complete shard. A bucket without documents has no packs and no file.

    Attributes:
        packs: rows of PACK_DTYPE.
        statistics: of its documents.
    """

    packs: NDArray[Any]
    statistics: Statistics
    documents: int = 0
    duplicates: int = 0
    near_duplicates: int = 0
    forced_cuts: int = 0
    text_bytes: int = 0
    shard_bytes: int = 0
    sha256: str = ""


def shard_encoder(job: ShardJob) -> Encoder:
    """The encoder of the corpus."""
    written_ns = (job.output / "tokenizer" / "vocab.json").stat().st_mtime_ns
    return _encoder(job.output, written_ns, job.pack_tokens, job.split_language)


@lru_cache(maxsize=1)
def _encoder(
    output: Path, written_ns: int, pack_tokens: int, split_language: str | None
) -> Encoder:
    """Building one takes half a second, so a process keeps the last.

    `written_ns`, when the tokenizer was written, tells one in the same folder from another.
    """
    splitter = None if split_language is None else Splitter(split_language)
    return Encoder(load_bpe(output / "tokenizer"), pack_tokens, splitter)


def encode_shard(job: ShardJob) -> None:
    """Encode a bucket, write its shard, then its result.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    encoder = shard_encoder(job)
    gathered = bucket_rows(job.selection, job.selection.bucket_number(job.split, job.bucket))
    distinct = drop_copies(gathered) if job.deduplicate else gathered
    rows = distinct[~is_dropped(distinct["position"], job.drops)]
    result = ShardResult(
        packs=np.zeros(0, dtype=PACK_DTYPE),
        statistics=Statistics.empty(encoder.vocab_size),
        documents=len(rows),
        duplicates=len(gathered) - len(distinct),
        near_duplicates=len(distinct) - len(rows),
        text_bytes=int(rows["length"].sum()),
    )

    def encoded() -> Iterator[Encoded]:
        for text in bucket_texts(job.selection, rows):
            document = encoder.encode(text.decode("utf-8"))
            result.forced_cuts += document.forced_cuts
            result.statistics.add_document(document, len(text))
            yield document

    if len(rows):
        with frozen_heap():
            written = write_shard(job.shard, build_packs(encoded(), job.pack_tokens))
        result.packs = written.packs
        result.shard_bytes, result.sha256 = written.bytes, written.sha256
    buffer = io.BytesIO()
    stored: dict[str, Any] = {**vars(result), **result.statistics.to_arrays()}
    del stored["statistics"]
    np.savez(buffer, **stored)
    atomic_write(job.result, buffer.getvalue())


def read_result(job: ShardJob) -> ShardResult:
    """The result of a complete job.

    Raises:
        DataFault: the shard beside it is not the one it describes.
    """
    with np.load(job.result, allow_pickle=False) as stored:
        statistics = Statistics.from_arrays(stored)
        names = {field.name for field in fields(ShardResult)} - {"statistics", "packs"}
        values = {name: stored[name].item() for name in names}
        result = ShardResult(packs=stored["packs"], statistics=statistics, **values)
    size = job.shard.stat().st_size if job.shard.is_file() else 0
    if size != result.shard_bytes:
        raise DataFault(
            f"{job.shard}: {size} bytes, it was written with {result.shard_bytes}",
            f"remove {job.output}, run prepare again",
        )
    return result


def shard_entry(job: ShardJob, result: ShardResult) -> Shard:
    """The shard's line in the manifest."""
    return Shard(name=job.shard.name, bytes=result.shard_bytes, sha256=result.sha256)
