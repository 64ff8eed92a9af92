"""Documents on disk between reading and encoding, dealt to buckets by their place in the shuffle.

A bucket holds a range of places and becomes one shard, so memory is bounded by a bucket's index and
tokens, whatever the size of the corpus. Two files each: the texts one after another, and an index
with one row a document in source order.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roberta_dist.runtime.files import fsync_file, storage_errors
from roberta_dist.units import MIB

INDEX_DTYPE = np.dtype(
    [("place_high", "<u8"), ("place_low", "<u8"), ("offset", "<u8"), ("length", "<u8")]
)
BUFFER_BYTES = 128 * MIB
TEXT_BYTES_PER_TOKEN_BYTE = 2
"""Rough: English text has about 4 bytes a token, and a token is stored in 2."""
SMALL_SHARD_PACKS = 16
SMALL_CORPUS_SHARDS = 8


def bucket_count(text_bytes: float, shard_mib: float, pack_mib: float) -> int:
    """Shards for about so much text: of `shard_mib` each, or up to 8 smaller ones.

    A small corpus is dealt to several shards of at least 16 packs so that several cores encode it.
    """
    mib = text_bytes / TEXT_BYTES_PER_TOKEN_BYTE / MIB
    wanted = -(-mib // shard_mib)
    small = min(SMALL_CORPUS_SHARDS, mib // (SMALL_SHARD_PACKS * pack_mib))
    return int(max(1, wanted, small))


def bucket_name(split: str, bucket: int) -> str:
    """`train-000003`."""
    return f"{split}-{bucket:06d}"


class Spool:
    """Writes the buckets.

    Args:
        folder: where; created.
        buckets: number of buckets of each split.
    """

    def __init__(self, folder: Path, buckets: dict[str, int]) -> None:
        self._folder = folder
        self._buckets = buckets
        self._texts: dict[str, list[bytes]] = {}
        self._rows: dict[str, list[tuple[int, int, int, int]]] = {}
        self._offsets: dict[str, int] = {}
        self._buffered = 0
        with storage_errors(folder):
            folder.mkdir(parents=True)
            for split, count in buckets.items():
                for bucket in range(count):
                    self._begin(bucket_name(split, bucket))

    def _begin(self, name: str) -> None:
        for suffix in ("text", "index"):
            (self._folder / f"{name}.{suffix}").touch()
        self._texts[name], self._rows[name], self._offsets[name] = [], [], 0

    def add(self, split: str, place: bytes, text: bytes) -> None:
        """Append one document.

        Raises:
            StorageError: the disk is full or the folder cannot be written.
        """
        high, low = int.from_bytes(place[:8], "big"), int.from_bytes(place[8:], "big")
        name = bucket_name(split, high * self._buckets[split] >> 64)
        self._texts[name].append(text)
        self._rows[name].append((high, low, self._offsets[name], len(text)))
        self._offsets[name] += len(text)
        self._buffered += len(text) + INDEX_DTYPE.itemsize
        if self._buffered >= BUFFER_BYTES:
            self._flush()

    def _flush(self) -> None:
        for name, texts in self._texts.items():
            if not texts:
                continue
            path = self._folder / f"{name}.text"
            with storage_errors(path), open(path, "ab") as text_file:
                text_file.writelines(texts)
            with storage_errors(path), open(path.with_suffix(".index"), "ab") as index_file:
                index_file.write(np.array(self._rows[name], dtype=INDEX_DTYPE).tobytes())
            self._texts[name], self._rows[name] = [], []
        self._buffered = 0

    def close(self) -> None:
        """Write what is buffered and make it durable."""
        self._flush()
        for name in self._texts:
            for suffix in ("text", "index"):
                path = self._folder / f"{name}.{suffix}"
                with storage_errors(path):
                    fsync_file(path)


def bucket_order(folder: Path, name: str, deduplicate: bool) -> tuple[NDArray[Any], int]:
    """Rows of INDEX_DTYPE in shuffled order, and how many duplicates were left out.

    Of documents with one place, that is one content, the first in source order is kept.
    """
    rows = np.fromfile(folder / f"{name}.index", dtype=INDEX_DTYPE)
    rows = rows[np.lexsort((rows["place_low"], rows["place_high"]))]
    if not deduplicate or len(rows) == 0:
        return rows, 0
    places = rows[["place_high", "place_low"]]
    first = np.append(True, places[1:] != places[:-1])
    return rows[first], int(len(rows) - first.sum())


def bucket_texts(folder: Path, name: str, rows: NDArray[Any]) -> Iterator[str]:
    """The texts of `rows`."""
    with open(folder / f"{name}.text", "rb") as texts:
        for offset, length in zip(rows["offset"].tolist(), rows["length"].tolist(), strict=True):
            texts.seek(offset)
            yield texts.read(length).decode("utf-8")
