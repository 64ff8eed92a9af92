"""Documents → packs → one webdataset tar shard, with the index of what lies where."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from webdataset import TarWriter

from roberta_dist.corpus.encode import DocumentEncoder, EncodedDocument
from roberta_dist.corpus.manifest import PACK_DTYPE, Shard
from roberta_dist.corpus.pack import Pack, encode_pack
from roberta_dist.corpus.packing import full_sentence_bounds
from roberta_dist.runtime.files import file_sha256, fsync_file, storage_errors


@dataclass(frozen=True)
class ShardResult:
    """What was written.

    Attributes:
        shard: name, size and hash.
        packs: rows of PACK_DTYPE.
        token_counts: int64 [vocab_size].
        documents: documents that begin here.
        forced_cuts: cuts by length.
    """

    shard: Shard
    packs: NDArray[Any]
    token_counts: NDArray[np.int64]
    documents: int
    forced_cuts: int


@dataclass(frozen=True)
class _Part:
    """Whole sentences of one document."""

    tokens: NDArray[np.uint16]
    sentence_lengths: NDArray[np.int64]
    first: bool
    last: bool


def _parts(document: EncodedDocument, capacity: int) -> Iterator[_Part]:
    """The document, cut at sentence ends into parts of at most `capacity` tokens."""
    ends = np.cumsum(document.sentence_lengths)
    begin_sentence, begin_token = 0, 0
    while begin_sentence < len(ends):
        stop = int(np.searchsorted(ends, begin_token + capacity, side="right"))
        stop = max(stop, begin_sentence + 1)
        end_token = int(ends[stop - 1])
        yield _Part(
            document.tokens[begin_token:end_token],
            document.sentence_lengths[begin_sentence:stop],
            first=begin_sentence == 0,
            last=stop == len(ends),
        )
        begin_sentence, begin_token = stop, end_token


def _join(parts: list[_Part]) -> Pack:
    return Pack(
        tokens=np.concatenate([part.tokens for part in parts]),
        sentence_lengths=np.concatenate([p.sentence_lengths for p in parts]).astype(np.uint16),
        document_ends=np.cumsum([len(p.sentence_lengths) for p in parts]).astype(np.uint32),
        continues_previous=not parts[0].first,
        continues_next=not parts[-1].last,
    )


def make_packs(documents: Iterable[EncodedDocument], capacity: int) -> Iterator[Pack]:
    """Packs of at most `capacity` tokens; only a document longer than that is cut."""
    held: list[_Part] = []
    size = 0
    for document in documents:
        for part in _parts(document, capacity):
            if held and (size + len(part.tokens) > capacity or not part.first):
                yield _join(held)
                held, size = [], 0
            held.append(part)
            size += len(part.tokens)
    if held:
        yield _join(held)


def write_shard(
    path: Path,
    number: int,
    texts: Iterable[str],
    encoder: DocumentEncoder,
    capacity: int,
    vocab_size: int,
) -> ShardResult:
    """Encode documents into one tar; the file appears under its name only when whole.

    Raises:
        StorageError: the disk is full.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    token_counts = np.zeros(vocab_size, dtype=np.int64)
    rows: list[tuple[int, ...]] = []
    documents, forced = 0, 0

    def encoded() -> Iterator[EncodedDocument]:
        nonlocal documents, forced
        for text in texts:
            document = encoder.encode(text)
            documents, forced = documents + 1, forced + document.forced_cuts
            yield document

    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as stream:
            # Fixed times and no compression: equal documents give equal bytes.
            writer = TarWriter(stream, mtime=0, encoder=False)
            for pack in make_packs(encoded(), capacity):
                data = encode_pack(pack)
                writer.write({"__key__": f"{number:06d}-{len(rows):06d}", "tok": data})
                padded = -(-len(data) // 512) * 512
                offset = writer.tarstream.offset - padded
                rows.append(_pack_row(number, offset, data, pack))
                token_counts += np.bincount(pack.tokens, minlength=vocab_size)
            writer.close()
        fsync_file(temporary)
        os.replace(temporary, path)
    shard = Shard(path.name, path.stat().st_size, file_sha256(path))
    return ShardResult(shard, np.array(rows, dtype=PACK_DTYPE), token_counts, documents, forced)


def _pack_row(number: int, offset: int, data: bytes, pack: Pack) -> tuple[int, ...]:
    return (
        number,
        offset,
        len(data),
        zlib.crc32(data),
        len(pack.document_ends),
        len(pack.sentence_lengths),
        len(pack.tokens),
        len(full_sentence_bounds(pack, 128)),
        len(full_sentence_bounds(pack, 512)),
    )
