"""Encoded documents to packs, packs to one webdataset tar shard."""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from roberta_dist.corpus.encode import Encoded
from roberta_dist.corpus.manifest import PACK_DTYPE
from roberta_dist.corpus.pack import Pack, encode_pack
from roberta_dist.corpus.packing import full_sentence_bounds
from roberta_dist.runtime.files import atomic_file

MEMBER_SUFFIX = "tok"
_TAR_BLOCK = 512


class _Builder:
    """A pack being filled."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.continues = False
        self._clear()

    def _clear(self) -> None:
        self._tokens: list[NDArray[np.uint16]] = []
        self._lengths: list[NDArray[np.int64]] = []
        self._document_ends: list[int] = []
        self._sentences = 0
        self.room = self.capacity

    def put(self, tokens: NDArray[np.uint16], lengths: NDArray[np.int64]) -> None:
        """Take a document, or the sentences of one that find room here."""
        self._tokens.append(tokens)
        self._lengths.append(lengths)
        self._sentences += len(lengths)
        self._document_ends.append(self._sentences)
        self.room -= len(tokens)

    def close(self, continues_next: bool) -> Pack:
        """The pack; the next one begins empty."""
        pack = Pack(
            tokens=np.concatenate(self._tokens),
            sentence_lengths=np.concatenate(self._lengths).astype(np.uint16),
            document_ends=np.array(self._document_ends, dtype=np.uint32),
            continues_previous=self.continues,
            continues_next=continues_next,
        )
        self.continues = continues_next
        self._clear()
        return pack


def build_packs(documents: Iterable[Encoded], pack_tokens: int) -> Iterator[Pack]:
    """Fill packs of at most `pack_tokens` with whole documents, in order.

    Only a document longer than a pack is split, between sentences; it also uses the room left in
    the pack before. Sentences must be no longer than `pack_tokens`.
    """
    builder = _Builder(pack_tokens)
    for document in documents:
        tokens, lengths = document.tokens, document.sentence_lengths
        if builder.room < len(tokens) <= pack_tokens:
            yield builder.close(continues_next=False)
        started = False
        while len(tokens) > builder.room:
            ends = np.cumsum(lengths)
            fitting = int(np.searchsorted(ends, builder.room, side="right"))
            if fitting:
                cut = int(ends[fitting - 1])
                builder.put(tokens[:cut], lengths[:fitting])
                tokens, lengths = tokens[cut:], lengths[fitting:]
                started = True
            yield builder.close(continues_next=started)
        builder.put(tokens, lengths)
    if builder.room < pack_tokens:
        yield builder.close(continues_next=False)


class _Hashing(io.RawIOBase):
    """A file to write, hashed on the way."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self.sha256 = hashlib.sha256()
        self.bytes = 0

    def write(self, data: Any) -> int:
        """Write all of `data`."""
        self.sha256.update(data)
        self.bytes += len(data)
        return self._handle.write(data)


@dataclass(frozen=True)
class WrittenShard:
    """A complete shard.

    Attributes:
        packs: one row of PACK_DTYPE a pack; `shard` is 0, `first_document` counts in the shard.
        bytes: of the file.
        sha256: of the bytes as they were written.
    """

    packs: NDArray[Any]
    bytes: int
    sha256: str


def write_shard(path: Path, packs: Iterable[Pack]) -> WrittenShard:
    """Write a tar of packs, whole or not at all; equal packs give equal bytes.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    from webdataset import TarWriter  # brings torch along: only who writes a shard waits for it

    rows: list[tuple[int, ...]] = []
    documents = 0
    with atomic_file(path) as handle:
        hashing = _Hashing(handle)
        with TarWriter(hashing, encoder=False, mtime=0) as writer:
            for number, pack in enumerate(packs):
                payload = encode_pack(pack)
                writer.write({"__key__": f"{number:08d}", MEMBER_SUFFIX: payload})
                padded = -(-len(payload) // _TAR_BLOCK) * _TAR_BLOCK
                first = documents - pack.continues_previous
                rows.append(_row(pack, payload, int(writer.tarstream.offset) - padded, first))
                documents = first + len(pack.document_ends)
    table = np.array(rows, dtype=PACK_DTYPE)
    return WrittenShard(table, hashing.bytes, hashing.sha256.hexdigest())


def _row(pack: Pack, payload: bytes, offset: int, first_document: int) -> tuple[int, ...]:
    return (
        0,
        offset,
        len(payload),
        zlib.crc32(payload),
        len(pack.document_ends),
        len(pack.sentence_lengths),
        len(pack.tokens),
        len(full_sentence_bounds(pack, 128)),
        len(full_sentence_bounds(pack, 512)),
        first_document,
    )
