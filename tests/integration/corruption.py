"""Random damage to a prepared corpus, and who notices it.

    python tests/integration/corruption.py [COUNT] [SEED]

prints what our reader, the check before a run and tools/verify_shards.py say of COUNT corruptions,
and in how many of them `wds.WebDataset` on the same files loses or returns wrong samples in silence.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import serving
import webdataset as wds

from roberta_dist.corpus.manifest import (
    PACK_DTYPE,
    Manifest,
    Shard,
    SpecialTokens,
    open_manifest,
    write_manifest,
)
from roberta_dist.corpus.opening import open_store
from roberta_dist.corpus.pack import Pack, encode_pack
from roberta_dist.corpus.shards import write_shard
from roberta_dist.corpus.storage import ReadOptions
from roberta_dist.corpus.verify import verify_shard
from roberta_dist.errors import DataFault, PackFault
from roberta_dist.runtime.files import file_sha256
from roberta_dist.stream.packs import PackReader, check_shards

SHARDS, PACKS, VOCAB = 4, 10, 100
BLOCK = 512
SPECIAL = SpecialTokens(bos=0, pad=1, eos=2, unk=3, mask=99)
OPTIONS = ReadOptions(retry_s=0.1)


def some_pack(rng: np.random.Generator, sentences: int) -> Pack:
    lengths = np.full(sentences, 25, dtype=np.uint16)
    tokens = rng.integers(4, 99, 25 * sentences).astype(np.uint16)
    return Pack(tokens, lengths, np.array([sentences // 2, sentences], dtype=np.uint32))


def build_split(folder: Path, seed: int = 0) -> Manifest:
    """Shards as `prepare` writes them; every second pack has the same length as the others' ones."""
    rng = np.random.default_rng(seed)
    rows, shards = [], []
    for number in range(SHARDS):
        path = folder / f"shard-{number:06d}.tar"
        sizes = [40 if i % 2 else 30 + number + i for i in range(PACKS)]
        packs = write_shard(path, [some_pack(rng, size) for size in sizes]).packs
        packs["shard"] = number
        rows.append(packs)
        shards.append(Shard(path.name, path.stat().st_size, file_sha256(path)))
    joined = np.concatenate(rows).astype(PACK_DTYPE)
    manifest = Manifest(
        folder=folder, sha256="", split="train", tokenizer_sha256="", vocab_size=VOCAB,
        special_tokens=SPECIAL, shards=tuple(shards), documents=2 * len(joined),
        tokens=int(joined["tokens"].sum()), unigram_entropy=1.0, held_out_salt="",
        held_out_fraction=0.0, packs=joined,
    )  # fmt: skip
    write_manifest(manifest)
    return manifest


@dataclass(frozen=True)
class Corruption:
    """What was done.

    Attributes:
        kind: one of `KINDS`.
        description: with the place.
        shard: name of the damaged shard.
        packs: indices whose payload is no longer the manifest's where it should lie.
        server_cut: bytes after which an HTTP server stops sending this shard; -1 for never.
    """

    kind: str
    description: str
    shard: str
    packs: frozenset[int]
    server_cut: int = -1


class Target:
    """A split to be damaged: its manifest before the damage, and the bytes of its shards."""

    def __init__(self, rng: np.random.Generator, manifest: Manifest) -> None:
        self.rng = rng
        self.manifest = manifest
        self.number = int(rng.integers(len(manifest.shards)))
        self.name = manifest.shards[self.number].name
        self.path = manifest.folder / self.name
        self.data = bytearray(self.path.read_bytes())
        self.indices = np.flatnonzero(manifest.packs["shard"] == self.number)

    def pick(self) -> tuple[int, int, int]:
        """A random pack of the shard: index, offset, length."""
        index = int(self.rng.choice(self.indices))
        return index, *self.place(index)

    def place(self, index: int) -> tuple[int, int]:
        entry = self.manifest.packs[index]
        return int(entry["offset"]), int(entry["length"])

    def done(self, kind: str, description: str, cut: int = -1) -> Corruption:
        """Write the damaged bytes and find out which payloads changed."""
        self.path.write_bytes(self.data)
        changed = frozenset(
            int(index) for index in self.indices if not self._whole(int(index), cut)
        )
        return Corruption(kind, f"{self.name}: {description}", self.name, changed, cut)

    def _whole(self, index: int, cut: int) -> bool:
        offset, length = self.place(index)
        data = bytes(self.data[: cut if cut >= 0 else None][offset : offset + length])
        return zlib.crc32(data) == int(self.manifest.packs[index]["crc32"]) and len(data) == length


def flip_payload(target: Target) -> Corruption:
    index, offset, length = target.pick()
    place, bit = offset + int(target.rng.integers(length)), int(target.rng.integers(8))
    target.data[place] ^= 1 << bit
    return target.done("flip_payload", f"bit {bit} of byte {place}, in pack {index}")


def flip_header(target: Target) -> Corruption:
    index, offset, _ = target.pick()
    used = int(target.rng.integers(345) if target.rng.random() < 0.8 else target.rng.integers(512))
    place, bit = offset - BLOCK + used, int(target.rng.integers(8))
    target.data[place] ^= 1 << bit
    return target.done("flip_header", f"bit {bit} of byte {used} of the header of pack {index}")


def flip_between(target: Target) -> Corruption:
    """In the padding after a payload, or in the zero blocks at the end."""
    covered = np.zeros(len(target.data), dtype=bool)
    for index in target.indices:
        offset, length = target.place(int(index))
        covered[offset - BLOCK : offset + length] = True
    place = int(target.rng.choice(np.flatnonzero(~covered)))
    target.data[place] ^= 1 << int(target.rng.integers(8))
    return target.done("flip_between", f"byte {place}, of the padding")


def boundaries(target: Target) -> dict[str, int]:
    """One place of every kind at which a file can end too early."""
    _, offset, length = target.pick()
    last = max(sum(target.place(int(index))) for index in target.indices)
    end = -(-last // BLOCK) * BLOCK
    inside = int(target.rng.integers(1, length))
    return {
        "before a header": offset - BLOCK,
        "inside a header": offset - BLOCK + int(target.rng.integers(1, BLOCK)),
        "after a header": offset,
        "inside a payload": offset + inside,
        "one byte before the end of a payload": offset + length - 1,
        "after a payload": offset + length,
        "before the end of the archive": end,
        "inside the end of the archive": end + BLOCK,
        "at the start": 0,
        "one byte before the end": len(target.data) - 1,
    }


def truncate(target: Target) -> Corruption:
    places = boundaries(target)
    name = str(target.rng.choice(list(places)))
    del target.data[places[name] :]
    return target.done("truncate", f"cut {name}, at byte {places[name]}")


def swap_members(target: Target) -> Corruption:
    """Two members of equal length change places: payloads only, or with their headers."""
    equal = [int(i) for i in target.indices if target.place(int(i))[1] == _common_length(target)]
    first, second = (int(i) for i in target.rng.choice(equal, 2, replace=False))
    header = BLOCK if target.rng.random() < 0.5 else 0
    (left, length), (right, _) = target.place(first), target.place(second)
    a, b = slice(left - header, left + length), slice(right - header, right + length)
    target.data[a], target.data[b] = target.data[b], target.data[a]
    what = "members" if header else "payloads"
    return target.done("swap_members", f"{what} of packs {first} and {second} swapped")


def _common_length(target: Target) -> int:
    lengths, counts = np.unique(target.manifest.packs["length"][target.indices], return_counts=True)
    return int(lengths[np.argmax(counts)])


def replace_shard(target: Target) -> Corruption:
    """By another valid one: of the same corpus, or the same shard of another."""
    if target.rng.random() < 0.5:
        other = target.manifest.shards[(target.number + 1) % len(target.manifest.shards)].name
        target.data[:] = (target.manifest.folder / other).read_bytes()
        return target.done("replace_shard", f"replaced by {other}")
    with tempfile.TemporaryDirectory() as folder:
        build_split(Path(folder), seed=1)
        target.data[:] = (Path(folder) / target.name).read_bytes()
    return target.done("replace_shard", "replaced by the same shard of another corpus")


def missing_shard(target: Target) -> Corruption:
    target.data.clear()
    corruption = target.done("missing_shard", "removed")
    target.path.unlink()
    return corruption


def http_cut(target: Target) -> Corruption:
    """A server whose body ends early, whatever part is asked for: the file itself is whole."""
    places = boundaries(target)
    name = str(target.rng.choice(list(places)[:6]))
    return target.done("http_cut", f"bodies end {name}, at byte {places[name]}", places[name])


KINDS: tuple[Callable[[Target], Corruption], ...] = (
    flip_payload, flip_header, flip_between, truncate, truncate, swap_members, replace_shard,
    missing_shard, http_cut, flip_header, flip_payload,
)  # fmt: skip


def corrupt(rng: np.random.Generator, manifest: Manifest, number: int | None = None) -> Corruption:
    """Damage the split in `manifest.folder`; `number` picks the kind, else it is random."""
    kind = int(rng.integers(len(KINDS))) if number is None else number % len(KINDS)
    return KINDS[kind](Target(rng, manifest))


@dataclass
class Verdict:
    """What each reader made of one corruption."""

    corruption: Corruption
    at_start: bool
    faults: list[PackFault]
    verified: bool
    rows_right: bool
    webdataset: str
    webdataset_and_continue: str

    @property
    def undetected(self) -> bool:
        """Something we neither name nor are unharmed by."""
        found = {fault.pack for fault in self.faults}
        named = all(
            fault.shard == self.corruption.shard and fault.offset >= 0 and fault.pack >= 0
            for fault in self.faults
        )
        return not (found == self.corruption.packs and named and self.verified and self.rows_right)


def judge(manifest: Manifest, originals: list[bytes], corruption: Corruption) -> Verdict:
    """Read the damaged split in every way.

    Args:
        manifest: before the damage.
        originals: payload of each pack, before.
        corruption: what was done.
    """
    if corruption.server_cut >= 0:
        cuts = {f"/{corruption.shard}": corruption.server_cut}
        with serving.http_server(manifest.folder, cuts=cuts) as server:
            return _judge(server.url, f"{server.url}/{{}}", manifest, originals, corruption)
    folder = str(manifest.folder)
    return _judge(folder, f"{folder}/{{}}", manifest, originals, corruption)


def _judge(
    path: str, template: str, before: Manifest, originals: list[bytes], corruption: Corruption
) -> Verdict:
    manifest = open_manifest(open_store(path, OPTIONS))
    assert manifest.sha256 == open_manifest(before.store).sha256
    at_start = False
    try:
        check_shards(manifest)
    except DataFault as error:
        at_start = corruption.shard in error.problem
    reader, faults, right = PackReader(manifest), [], True
    for index in range(len(manifest.packs)):
        try:
            right &= encode_pack(reader.read(index)) == originals[index]
        except PackFault as fault:
            faults.append(fault)
    findings = [f for n in range(len(manifest.shards)) for f in verify_shard(manifest, n, False)]
    verified = bool(findings) and all(finding.shard == corruption.shard for finding in findings)
    urls = [template.replace("{}", shard.name) for shard in manifest.shards]
    return Verdict(
        corruption, at_start, faults, verified, right,
        _webdataset(urls, originals, wds.reraise_exception),
        _webdataset(urls, originals, wds.ignore_and_continue),
    )  # fmt: skip


def _webdataset(urls: list[str], originals: list[bytes], handler: Callable[..., bool]) -> str:
    """`raises`, `right`, or `silent`: other samples than there were, and no error."""
    payloads = []
    urls = [f"pipe:curl -sf {url}" if url.startswith("http") else url for url in urls]
    try:
        for sample in wds.WebDataset(urls, shardshuffle=False, handler=handler):
            payloads.append(sample.get("tok"))
    except Exception:
        return "raises"
    return "right" if payloads == originals else "silent"


def run(count: int, seed: int, folder: Path) -> list[Verdict]:
    """`count` corruptions, each of a whole split; every kind in turn."""
    manifest = build_split(folder)
    rng = np.random.default_rng(seed)
    whole = {shard.name: (folder / shard.name).read_bytes() for shard in manifest.shards}
    reader = PackReader(manifest)
    originals = [encode_pack(reader.read(index)) for index in range(len(manifest.packs))]
    verdicts = []
    for number in range(count):
        verdicts.append(judge(manifest, originals, corrupt(rng, manifest, number)))
        for name, data in whole.items():
            (folder / name).write_bytes(data)
    return verdicts


def summary(verdicts: list[Verdict]) -> dict[str, int]:
    """Counts over all corruptions."""
    harmless = [v for v in verdicts if not v.corruption.packs]
    return {
        "corruptions": len(verdicts),
        "undetected": sum(v.undetected for v in verdicts),
        "payload_damaged": len(verdicts) - len(harmless),
        "payload_damaged_named_by_reader": sum(bool(v.faults) for v in verdicts),
        "payload_whole_rows_identical": sum(v.rows_right and not v.faults for v in harmless),
        "refused_at_start": sum(v.at_start for v in verdicts),
        "named_by_verify_shards": sum(v.verified for v in verdicts),
        "webdataset_silent": sum(v.webdataset == "silent" for v in verdicts),
        "webdataset_silent_and_continue": sum(
            v.webdataset_and_continue == "silent" for v in verdicts
        ),
    }


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        verdicts = run(count, seed, Path(folder))
    for kind in sorted({v.corruption.kind for v in verdicts}):
        print(kind, json.dumps(summary([v for v in verdicts if v.corruption.kind == kind])))
    for verdict in verdicts:
        if verdict.undetected:
            print("UNDETECTED", asdict(verdict.corruption), verdict)
    print(json.dumps(summary(verdicts)))


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        main()
