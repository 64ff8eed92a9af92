"""Reading packs by range, checked against the manifest.

A reader takes (shard, offset, length) from `packs.npy`: no tar header is parsed, so none can
mislead it, and every payload is checked against the manifest's crc32.
"""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor

from roberta_dist.corpus.manifest import Manifest, Shard
from roberta_dist.corpus.pack import Pack, decode_pack
from roberta_dist.corpus.storage import Fingerprint
from roberta_dist.errors import DataFault, PackFault

LOOKERS = 32
"""Threads that look at shards before a run."""
RESTORE = "restore the shard from a copy, or prepare the corpus again"
UNREACHABLE = "check path, network and credentials, run again; data.retry_s waits longer"


def check_shards(manifest: Manifest, rank: int = 0, world_size: int = 1) -> None:
    """Every shard of this rank's part is there with the manifest's size.

    Shards rank, rank + world_size, … are looked at by `LOOKERS` threads, so that ten thousand
    take seconds; the caller joins what the ranks find.

    Raises:
        DataFault: lists each shard that is missing, has another size or cannot be reached.
    """
    store = manifest.store
    if not store.check_room(sum(shard.bytes for shard in manifest.shards)):
        return

    def wrong(shard: Shard) -> str | None:
        try:
            size = store.fingerprint(shard.name).bytes
        except FileNotFoundError:
            found = "missing"
        except OSError as error:
            return str(error)
        else:
            if size in (shard.bytes, -1):
                return None
            found = f"{size} bytes"
        return f"{store.where(shard.name)}: {found}, the manifest says {shard.bytes} bytes"

    with ThreadPoolExecutor(LOOKERS) as pool:
        found = [line for line in pool.map(wrong, manifest.shards[rank::world_size]) if line]
    if found:
        raise DataFault("\n  ".join(found), "restore the shards, or prepare the corpus again")


def check_disjoint(train: Manifest, held_out: Manifest) -> None:
    """Refuse a held-out loss measured on text that was trained on.

    Raises:
        DataFault: a shard of the same content is in both splits.
    """
    trained = {shard.sha256 for shard in train.shards}
    shared = [shard.name for shard in held_out.shards if shard.sha256 in trained]
    if shared:
        raise DataFault(
            f"{held_out.store.where()}: {', '.join(shared)} also in {train.store.where()}",
            "prepare the corpus again: its held-out text is training text",
        )


class PackReader:
    """Reads packs of one split by range; safe to call from several threads.

    Args:
        manifest: the split.
        corpus: its name in messages and faults; the split's where it has none of its own.
    """

    def __init__(self, manifest: Manifest, corpus: str = "") -> None:
        self.manifest = manifest
        self.corpus = corpus or manifest.split
        self._first_seen: dict[int, Fingerprint] = {}

    def read(self, index: int) -> Pack:
        """Pack `index` of the manifest.

        A payload with the wrong checksum is read once more, past any cached copy: the transport
        may have been at fault.

        Raises:
            PackFault: the shard is missing, short, changed, or the payload is not the manifest's;
                names corpus, shard, pack and offset.
        """
        entry = self.manifest.packs[index]
        number, offset, length = int(entry["shard"]), int(entry["offset"]), int(entry["length"])
        name = self.manifest.shards[number].name
        store = self.manifest.store
        try:
            if number not in self._first_seen:
                self._first_seen[number] = store.fingerprint(name)
            data = store.read_range(name, offset, length)
            if len(data) == length and zlib.crc32(data) != int(entry["crc32"]):
                store.forget(name)
                data = store.read_range(name, offset, length)
        except FileNotFoundError as error:
            raise self._fault(index, "cannot be read (the shard is missing)") from error
        except OSError as error:
            reason = (error.strerror or str(error)).removeprefix(f"{store.where(name)}: ")
            raise self._fault(
                index, f"cannot be read ({reason})", UNREACHABLE, damaged=False
            ) from error
        if len(data) != length:
            raise self._fault(index, f"{len(data)} of {length} bytes, the shard is cut")
        if zlib.crc32(data) != int(entry["crc32"]):
            raise self._fault(index, "crc32 differs from the manifest's")
        try:
            return decode_pack(data, f"{store.where(name)}: pack {index} at offset {offset}")
        except DataFault as error:
            raise self._fault(index, f"cannot be decoded ({error.problem})") from error

    def _fault(
        self, index: int, problem: str, remedy: str = RESTORE, damaged: bool = True
    ) -> PackFault:
        entry = self.manifest.packs[index]
        number, offset = int(entry["shard"]), int(entry["offset"])
        shard = self.manifest.shards[number]
        where = self.manifest.store.where(shard.name)
        return PackFault(
            f"{where}: pack {index} at offset {offset}: {problem}{self._changed(number, shard)}",
            remedy,
            *(self.corpus, shard.name, index, offset, damaged),
        )

    def _changed(self, number: int, shard: Shard) -> str:
        """What the shard's size and version add to a fault."""
        try:
            now = self.manifest.store.fingerprint(shard.name, patient=False)
        except OSError:
            return ""
        first = self._first_seen.get(number, now)
        if now.bytes not in (shard.bytes, -1):
            return f"; the shard has {now.bytes} bytes, the manifest says {shard.bytes}"
        if now != first:
            return (
                f"; the shard was replaced or changed since this run first read it (version "
                f"{first.version} is now {now.version})"
            )
        return ""
