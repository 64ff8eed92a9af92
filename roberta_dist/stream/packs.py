"""Reading packs by range, checked against the manifest, and holding the decoded ones.

A reader takes (shard, offset, length) from `packs.npy`: no tar header is parsed, so none can
mislead it, and every payload is checked against the manifest's crc32.
"""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roberta_dist.config.data import InputFormat
from roberta_dist.corpus.manifest import Manifest
from roberta_dist.corpus.pack import Pack, decode_pack
from roberta_dist.corpus.packing import contiguous_bounds, full_sentence_bounds, pack_payload
from roberta_dist.errors import DataFault


@dataclass(frozen=True)
class BlockPack:
    """A decoded pack, cut into blocks.

    Attributes:
        payload: tokens with `</s>` after each document.
        bounds: [blocks, 2] start and end of each block in `payload`.
        closes_rows: rows end in `</s>`; contiguous blocks do not, they are always full.
    """

    payload: NDArray[np.uint16]
    bounds: NDArray[np.int64]
    closes_rows: bool


def cut_blocks(pack: Pack, input_format: InputFormat, length: int, eos: int) -> BlockPack:
    """Cut one pack into rows of the chosen format; a function of the pack alone."""
    payload = pack_payload(pack, eos)
    if input_format is InputFormat.blocks:
        return BlockPack(payload, contiguous_bounds(len(payload), length), False)
    return BlockPack(payload, full_sentence_bounds(pack, length), True)


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


class BlockCache:
    """Decoded packs, the least recently used dropped first.

    Args:
        reader: where packs come from.
        input_format: how they are cut.
        length: tokens in a row.
        capacity: packs held.
    """

    def __init__(
        self, reader: PackReader, input_format: InputFormat, length: int, capacity: int
    ) -> None:
        self.reader = reader
        self.input_format = input_format
        self.length = length
        self.capacity = max(1, capacity)
        self.reads = 0
        self._held: OrderedDict[int, BlockPack] = OrderedDict()

    def get(self, index: int) -> BlockPack:
        """Pack `index`, cut into blocks."""
        if index in self._held:
            self._held.move_to_end(index)
            return self._held[index]
        eos = self.reader.manifest.special_tokens.eos
        block_pack = cut_blocks(self.reader.read(index), self.input_format, self.length, eos)
        self.reads += 1
        self._held[index] = block_pack
        while len(self._held) > self.capacity:
            self._held.popitem(last=False)
        return block_pack
