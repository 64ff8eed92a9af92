"""Encoding phase of prepare: each bucket becomes one shard, in parallel and restartable."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roberta_dist.corpus.bpe import load_bpe
from roberta_dist.corpus.encode import Encoded, Encoder
from roberta_dist.corpus.manifest import PACK_DTYPE, Shard
from roberta_dist.corpus.pack import Pack
from roberta_dist.corpus.shards import build_packs, write_shard
from roberta_dist.corpus.spool import bucket_name, bucket_order, bucket_texts
from roberta_dist.errors import DataFault
from roberta_dist.runtime.files import atomic_write, file_sha256


@dataclass(frozen=True)
class ShardJob:
    """One bucket to encode.

    Attributes:
        output: CORPUS.
        spool: folder of the buckets.
        done: folder of the results; a result there means the shard is complete.
        pack_tokens: most tokens in a pack.
    """

    split: str
    bucket: int
    output: Path
    spool: Path
    done: Path
    pack_tokens: int
    deduplicate: bool

    @property
    def name(self) -> str:
        """`train-000003`."""
        return bucket_name(self.split, self.bucket)

    @property
    def shard(self) -> Path:
        """The tar file."""
        return self.output / self.split / f"shard-{self.bucket:06d}.tar"

    @property
    def result(self) -> Path:
        """What the join needs to know of the shard."""
        return self.done / f"{self.name}.npz"


@dataclass
class ShardResult:
    """A complete shard. A bucket without documents has no packs and no file.

    Attributes:
        packs: rows of PACK_DTYPE.
        token_counts: int64 [vocab].
    """

    packs: NDArray[Any]
    token_counts: NDArray[np.int64]
    documents: int = 0
    duplicates: int = 0
    forced_cuts: int = 0
    text_bytes: int = 0
    shard_bytes: int = 0
    sha256: str = ""


def encode_shard(job: ShardJob) -> None:
    """Encode a bucket, write its shard, then its result.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    bpe = load_bpe(job.output / "tokenizer")
    encoder = Encoder(bpe, longest_sentence=job.pack_tokens)
    rows, duplicates = bucket_order(job.spool, job.name, job.deduplicate)
    result = ShardResult(
        packs=np.zeros(0, dtype=PACK_DTYPE),
        token_counts=np.zeros(bpe.size, dtype=np.int64),
        documents=len(rows),
        duplicates=duplicates,
        text_bytes=int(rows["length"].sum()),
    )

    def packs() -> Iterator[Pack]:
        for pack in build_packs(encoded(), job.pack_tokens):
            result.token_counts += np.bincount(pack.tokens, minlength=bpe.size)
            yield pack

    def encoded() -> Iterator[Encoded]:
        for text in bucket_texts(job.spool, job.name, rows):
            document = encoder.encode(text)
            result.forced_cuts += document.forced_cuts
            yield document

    if len(rows):
        result.packs = write_shard(job.shard, packs())
        result.shard_bytes = job.shard.stat().st_size
        result.sha256 = file_sha256(job.shard)
    buffer = io.BytesIO()
    np.savez(buffer, **vars(result))
    atomic_write(job.result, buffer.getvalue())


def read_result(job: ShardJob) -> ShardResult:
    """The result of a complete job.

    Raises:
        DataFault: the shard beside it is not the one it describes.
    """
    with np.load(job.result, allow_pickle=False) as stored:
        values = {field.name: stored[field.name] for field in fields(ShardResult)}
    arrays = {"packs", "token_counts"}
    result = ShardResult(**{k: v if k in arrays else v.item() for k, v in values.items()})
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
