"""Documents on their way from sources to shards: deduplicated, split, bucketed by hash on disk.

A document's 16-byte digest decides everything: duplicates, the split, the bucket, and its place
among the others. So neighbours in a shard are random, and no order of reading shows in the corpus.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from roberta_dist.config.corpus import CorpusConfig
from roberta_dist.corpus.documents import DocumentSource, digest, is_held_out
from roberta_dist.runtime.files import storage_errors, write_json
from roberta_dist.units import MIB

BUCKETS = 1024
SPLITS = ("train", "held_out")
_RECORD = struct.Struct("<16sI")
_BUFFERED = 64 * MIB


@dataclass(frozen=True)
class SpooledDocument:
    """A document in a bucket."""

    key: bytes
    text: str


class SpoolWriter:
    """Appends documents to bucket files through one bounded buffer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.split_bytes = dict.fromkeys(SPLITS, 0)
        self._buffers: dict[tuple[str, int], bytearray] = {}
        self._held = 0

    def add(self, split: str, key: bytes, text: str) -> None:
        """Add one document."""
        data = text.encode()
        buffer = self._buffers.setdefault((split, bucket_of(key)), bytearray())
        buffer += _RECORD.pack(key, len(data)) + data
        self.split_bytes[split] += len(data)
        self._held += len(data)
        if self._held > _BUFFERED:
            self.flush()

    def flush(self) -> None:
        """Write the buffer out."""
        with storage_errors(self.folder):
            for (split, bucket), buffer in self._buffers.items():
                with open(bucket_file(self.folder, split, bucket), "ab") as handle:
                    handle.write(buffer)
        self._buffers.clear()
        self._held = 0


def bucket_of(key: bytes) -> int:
    """Bucket of a digest; not the bits that decide the split."""
    return int.from_bytes(key[8:10], "big") % BUCKETS


def bucket_file(folder: Path, split: str, bucket: int) -> Path:
    """File of one bucket."""
    return folder / f"{split}-{bucket:04d}.bin"


def read_buckets(folder: Path, split: str, buckets: range) -> list[SpooledDocument]:
    """Documents of some buckets, in the order of their digests."""
    documents = []
    for bucket in buckets:
        path = bucket_file(folder, split, bucket)
        data = path.read_bytes() if path.is_file() else b""
        offset = 0
        while offset < len(data):
            key, length = _RECORD.unpack_from(data, offset)
            offset += _RECORD.size
            documents.append(SpooledDocument(key, data[offset : offset + length].decode()))
            offset += length
    return sorted(documents, key=lambda document: document.key)


def sources_state(source: DocumentSource) -> list[tuple[str, int, int]]:
    """Name, size and time of every file read: tells whether a half-done prepare may go on."""
    return [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in source.files()]


def spool(source: DocumentSource, config: CorpusConfig, folder: Path, progress: bool) -> None:
    """Read everything once. A finished spool of the same files is kept, any other redone.

    Raises:
        DataFault: a source file is damaged.
        StorageError: the disk is full.
    """
    state = [list(entry) for entry in sources_state(source)]
    marker = folder / "COMPLETE"
    if marker.is_file() and json.loads(marker.read_text())["sources"] == state:
        return
    # Shards of an older spool are not those of this one.
    shutil.rmtree(folder, ignore_errors=True)
    with storage_errors(folder):
        folder.mkdir(parents=True)
    writer = SpoolWriter(folder)
    seen: set[bytes] = set()
    counts = source.counts
    limit = int(config.max_mib * MIB) if config.max_mib else None
    bar = tqdm(source.documents(), "reading", unit="doc", disable=not progress)
    for document in bar:
        counts.documents += 1
        key = digest(document.text, config.held_out_salt)
        if not document.text.strip():
            counts.empty += 1
        elif config.deduplicate and key in seen:
            counts.duplicate += 1
        else:
            seen.add(key)
            held_out = is_held_out(key, config.held_out_fraction)
            counts.held_out += held_out
            writer.add(SPLITS[held_out], key, document.text)
        counts.bytes = sum(writer.split_bytes.values())
        if limit is not None and counts.bytes >= limit:
            break
    writer.flush()
    write_json(
        marker,
        {"sources": state, "counts": counts.as_dict(), "split_bytes": writer.split_bytes},
    )


def sample_texts(folder: Path, share: float) -> Iterator[str]:
    """Training documents whose digest falls below `share`, bucket by bucket."""
    for bucket in range(BUCKETS):
        for document in read_buckets(folder, "train", range(bucket, bucket + 1)):
            if int.from_bytes(document.key[10:], "big") < int(share * 2**48):
                yield document.text
