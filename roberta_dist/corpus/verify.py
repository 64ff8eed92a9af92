"""Every byte of a shard held against the manifest: payloads, tar headers, padding, end, counts."""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from roberta_dist.corpus.manifest import Manifest
from roberta_dist.corpus.pack import Pack, decode_pack
from roberta_dist.corpus.packing import full_sentence_bounds
from roberta_dist.corpus.storage import Store
from roberta_dist.errors import DataFault
from roberta_dist.units import MIB

BLOCK = tarfile.BLOCKSIZE
HASH_BYTES = 8 * MIB


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        where: the shard's place.
        shard: its name.
        pack: index into the manifest's packs; -1 where the whole shard is meant.
        offset: bytes from the start of the shard.
        problem: what is wrong there.
    """

    where: str
    shard: str
    pack: int
    offset: int
    problem: str

    def __str__(self) -> str:
        place = f": pack {self.pack}" if self.pack >= 0 else ""
        return f"{self.where}{place} at offset {self.offset}: {self.problem}"


def verify_shard(manifest: Manifest, number: int, with_sha256: bool = False) -> list[Finding]:
    """Read shard `number` once, from its first byte to its last.

    The training reader needs payloads only; headers, padding and the end of the archive are
    checked for `tar` and `wds.WebDataset`, which lose what lies behind a damaged header.

    Returns:
        What is wrong, in file order; empty for a whole shard. A shard that cannot be read further
        is one finding.
    """
    shard, store = manifest.shards[number], manifest.store
    findings: list[Finding] = []

    def found(pack: int, offset: int, problem: str) -> None:
        findings.append(Finding(store.where(shard.name), shard.name, pack, offset, problem))

    try:
        size = store.fingerprint(shard.name).bytes
        if size not in (shard.bytes, -1):
            found(-1, min(size, shard.bytes), f"{size} bytes, the manifest says {shard.bytes}")
        position = 0
        for index in np.flatnonzero(manifest.packs["shard"] == number).tolist():
            entry = manifest.packs[index]
            offset, length = int(entry["offset"]), int(entry["length"])
            if offset - position < BLOCK:
                found(index, offset, f"overlaps what ends at {position}: packs.npy is out of order")
            gap = max(0, offset - position)
            data = store.read_range(shard.name, offset - gap, gap + length)
            if len(data) < gap + length:
                found(index, offset, f"{len(data)} of {gap + length} bytes, the shard is cut")
                return findings
            for problem in _pack_problems(manifest, entry, data[gap:]):
                found(index, offset, problem)
            for problem in _header_problems(data[:gap], length):
                found(index, offset - BLOCK, f"tar header: {problem}")
            position = offset + length
        _check_end(store, shard.name, position, shard.bytes, found)
        if with_sha256 and _sha256(store, shard.name, shard.bytes) != shard.sha256:
            found(-1, 0, "sha256 differs from the manifest's")
    except OSError as error:
        reason = error.strerror or str(error)
        found(-1, 0, reason.removeprefix(f"{store.where(shard.name)}: "))
    return findings


def _pack_problems(manifest: Manifest, entry: Any, payload: bytes) -> list[str]:
    if zlib.crc32(payload) != int(entry["crc32"]):
        return ["crc32 differs from the manifest's"]
    try:
        pack = decode_pack(payload, "payload")
    except DataFault as error:
        return [f"cannot be decoded ({error.problem})"]
    problems = [
        f"{name}={counted}, packs.npy says {int(entry[name])}"
        for name, counted in _counts(pack).items()
        if counted != int(entry[name])
    ]
    if len(pack.tokens) and int(pack.tokens.max()) >= manifest.vocab_size:
        problems.append(f"token {int(pack.tokens.max())} of a vocabulary of {manifest.vocab_size}")
    return problems


def _counts(pack: Pack) -> dict[str, int]:
    return {
        "documents": len(pack.document_ends),
        "sentences": len(pack.sentence_lengths),
        "tokens": len(pack.tokens),
        "blocks_128": len(full_sentence_bounds(pack, 128)),
        "blocks_512": len(full_sentence_bounds(pack, 512)),
    }


def _header_problems(gap: bytes, length: int) -> list[str]:
    """`gap`: the padding of the member before, and the header of this one, right before it."""
    padding, header = gap[:-BLOCK], gap[-BLOCK:]
    problems = ["the padding before it is not zero"] if any(padding) else []
    if len(padding) >= BLOCK:
        problems.append(f"{len(padding)} bytes before it belong to no pack")
    try:
        member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        return [*problems, f"damaged ({error})"]
    if member.size != length or not member.isreg():
        problems.append(f"a member of {member.size} bytes, the pack has {length}")
    elif member.tobuf(tarfile.USTAR_FORMAT) != header:
        problems.append("not as prepare writes it")
    return problems


def _check_end(store: Store, name: str, position: int, size: int, found: Any) -> None:
    """Padding and zero blocks up to the size of the manifest; at least two blocks end a tar."""
    tail = store.read_range(name, position, size - position) if size > position else b""
    if any(tail):
        first = next(i for i, byte in enumerate(tail) if byte)
        found(-1, position + first, "bytes other than zero after the last pack")
    if len(tail) < 2 * BLOCK:
        found(-1, position, "no end of archive")


def _sha256(store: Store, name: str, size: int) -> str:
    hashed = hashlib.sha256()
    for offset in range(0, size, HASH_BYTES):
        hashed.update(store.read_range(name, offset, min(HASH_BYTES, size - offset)))
    return hashed.hexdigest()


def manifest_problems(manifest: Manifest) -> list[str]:
    """What packs.npy and manifest.json say of one another."""
    problems = []
    tokens = int(manifest.packs["tokens"].sum())
    if tokens != manifest.tokens:
        problems.append(f"packs.npy holds {tokens} tokens, manifest.json says {manifest.tokens}")
    empty = set(range(len(manifest.shards))) - set(np.unique(manifest.packs["shard"]).tolist())
    problems += [f"{manifest.shards[number].name}: no pack lies in it" for number in sorted(empty)]
    where = manifest.store.where("manifest.json")
    return [f"{where}: {problem}" for problem in problems]
