"""Documents on disk between reading and encoding: three files a part, whatever the buckets.

    part-00003.text     the texts; every flush of the buffer writes a run, grouped by bucket
    part-00003.index    one row of INDEX_DTYPE a text, in the same order
    part-00003.runs     uint64 [runs, buckets + 1]: where each bucket's rows begin in each run

and, where near duplicates are looked for, in the order of the index, run by run,

    part-00003.bands        uint64 [bands, rows of the run]
    part-00003.signatures   uint32 [rows, 128]

A bucket holds a range of places in the shuffle and becomes one shard. Buckets of both splits are
numbered together: training first.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from roberta_dist.corpus.minhash import write_sketches
from roberta_dist.runtime.files import atomic_file, storage_errors
from roberta_dist.units import MIB

INDEX_DTYPE = np.dtype(
    [
        ("place_high", "<u8"),
        ("place_low", "<u8"),
        ("position", "<u8"),
        ("offset", "<u8"),
        ("length", "<u8"),
    ]
)
"""Place in the shuffle; position in the source (unit number * 2**32 + ordinal in the unit); where
the text lies in the part's text file."""
ORDINAL_BITS = 32
SUFFIXES = (".text", ".index", ".runs")
SKETCH_SUFFIXES = (".bands", ".signatures")
BUFFER_BYTES = 32 * MIB
DOCUMENT_OVERHEAD = 100
"""Bytes that a buffered document takes beside its text: its object, its row."""
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


class PartSpool:
    """Writes one part through a buffer; use `part_spool`.

    Args:
        path: folder and name of the part, without suffix.
        buckets: number of buckets, both splits together.
        files: suffix → open file.
    """

    def __init__(self, path: Path, buckets: int, files: dict[str, BinaryIO]) -> None:
        self._path = path
        self._buckets = buckets
        self._files = files
        self._texts: list[bytes] = []
        self._sketches: list[bytes] = []
        self._facts = array("Q")  # bucket, place, position, length of each buffered text
        self._buffered = self._offset = self._rows = 0

    def add(
        self, bucket: int, place: bytes, position: int, text: bytes, sketch: bytes = b""
    ) -> None:
        """Append one document.

        Raises:
            StorageError: the disk is full or the folder cannot be written.
        """
        high, low = int.from_bytes(place[:8], "big"), int.from_bytes(place[8:], "big")
        self._texts.append(text)
        self._facts.extend((bucket, high, low, position, len(text)))
        if sketch:
            self._sketches.append(sketch)
        self._buffered += len(text) + len(sketch) + DOCUMENT_OVERHEAD
        if self._buffered >= BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is buffered, as one run."""
        if not self._texts:
            return
        facts = np.frombuffer(self._facts, dtype=np.uint64).reshape(-1, 5)
        order = np.argsort(facts[:, 0], kind="stable")
        facts = facts[order]
        lengths = facts[:, 4]
        rows = np.empty(len(facts), dtype=INDEX_DTYPE)
        rows["place_high"], rows["place_low"], rows["position"] = facts[:, 1:4].T
        rows["length"] = lengths
        rows["offset"] = self._offset + np.cumsum(lengths) - lengths
        starts = self._rows + np.searchsorted(facts[:, 0], np.arange(self._buckets + 1))
        with storage_errors(self._path):
            self._files[".text"].writelines(self._texts[number] for number in order.tolist())
            self._files[".index"].write(rows.tobytes())
            self._files[".runs"].write(starts.astype("<u8").tobytes())
            if self._sketches:
                sketches = [self._sketches[number] for number in order.tolist()]
                write_sketches(self._files[".bands"], self._files[".signatures"], sketches)
        self._offset += int(lengths.sum())
        self._rows += len(rows)
        self._texts, self._sketches, self._facts, self._buffered = [], [], array("Q"), 0


@contextmanager
def part_spool(path: Path, buckets: int, sketches: bool) -> Iterator[PartSpool]:
    """A part to write; its files appear, complete and durable, when the block is through.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    with ExitStack() as stack:
        suffixes = SUFFIXES + SKETCH_SUFFIXES * sketches
        files = {
            suffix: stack.enter_context(atomic_file(path.with_suffix(suffix)))
            for suffix in suffixes
        }
        spool = PartSpool(path, buckets, files)
        yield spool
        spool.flush()


def read_runs(path: Path, bucket: int, buckets: int) -> NDArray[np.uint64]:
    """Rows of `bucket` in each run of the part at `path`: uint64 [runs, 2], first and end."""
    width = 8 * (buckets + 1)
    found = []
    with open(path.with_suffix(".runs"), "rb") as runs:
        for start in range(8 * bucket, runs.seek(0, 2), width):
            runs.seek(start)
            found.append(np.frombuffer(runs.read(16), dtype="<u8"))
    return np.array(found, dtype=np.uint64).reshape(-1, 2)


def read_bucket(path: Path, bucket: int, buckets: int) -> NDArray[np.void]:
    """Rows of INDEX_DTYPE of `bucket` in the part at `path`, in no order."""
    pieces = [
        np.fromfile(
            path.with_suffix(".index"),
            dtype=INDEX_DTYPE,
            count=int(end - first),
            offset=int(first) * INDEX_DTYPE.itemsize,
        )
        for first, end in read_runs(path, bucket, buckets)
        if end > first
    ]
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=INDEX_DTYPE)
