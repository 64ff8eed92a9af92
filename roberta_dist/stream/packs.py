"""Reading packs by range, checked against the manifest.

A reader takes (shard, offset, length) from `packs.npy`: no tar header is parsed, so none can
mislead it, and every payload is checked against the manifest's crc32.
"""

from __future__ import annotations

import os
import zlib

from roberta_dist.corpus.manifest import Manifest
from roberta_dist.corpus.pack import Pack, decode_pack
from roberta_dist.errors import DataFault


def check_shards(manifest: Manifest) -> None:
    """Every shard is there with the manifest's size.

    Raises:
        DataFault: lists each shard that is missing or has another size.
    """
    wrong = []
    for shard in manifest.shards:
        path = manifest.folder / shard.name
        size = path.stat().st_size if path.is_file() else None
        if size != shard.bytes:
            found = "missing" if size is None else f"{size} bytes"
            wrong.append(f"{path}: {found}, the manifest says {shard.bytes} bytes")
    if wrong:
        raise DataFault("\n  ".join(wrong), "restore the shards, or prepare the corpus again")


class PackReader:
    """Reads packs of one split with `pread`; safe to call from several threads."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._descriptors: dict[int, int] = {}

    def read(self, index: int) -> Pack:
        """Pack `index` of the manifest.

        Raises:
            DataFault: the shard is missing, short, or the payload is not the manifest's.
        """
        entry = self.manifest.packs[index]
        shard = self.manifest.shards[int(entry["shard"])]
        offset, length = int(entry["offset"]), int(entry["length"])
        where = f"{self.manifest.folder / shard.name}: pack {index} at offset {offset}"
        remedy = "restore the shard from a copy, or prepare the corpus again"
        try:
            data = os.pread(self._descriptor(int(entry["shard"])), length, offset)
        except OSError as error:
            raise DataFault(f"{where}: cannot be read ({error.strerror})", remedy) from error
        if len(data) != length:
            raise DataFault(f"{where}: {len(data)} of {length} bytes, the shard is cut", remedy)
        if zlib.crc32(data) != int(entry["crc32"]):
            raise DataFault(f"{where}: crc32 differs from the manifest's", remedy)
        return decode_pack(data, where)

    def _descriptor(self, shard: int) -> int:
        if shard not in self._descriptors:
            path = self.manifest.folder / self.manifest.shards[shard].name
            self._descriptors[shard] = os.open(path, os.O_RDONLY)
        return self._descriptors[shard]

    def close(self) -> None:
        """Close the shard files."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
