"""The index of a split: `manifest.json` (what it is) and `packs.npy` (where each pack lies).

CORPUS/tokenizer/           vocab.json, merges.txt, tokenizer.json, tokenizer_config.json, ...
CORPUS/train/               manifest.json, packs.npy, shard-000000.tar, ...
CORPUS/held_out/            the same
CORPUS/prepare.json         settings and counts of the prepare that wrote it
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from roberta_dist.corpus.storage import Content, LocalStore, Store
from roberta_dist.errors import ConfigError, DataFault
from roberta_dist.runtime.files import atomic_write, write_json

FORMAT_VERSION = 2
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
"""A file of the split's own folder and nothing else: no path, nothing a shell would read."""

PACK_DTYPE = np.dtype(
    [
        ("shard", "<u4"),
        ("offset", "<u8"),
        ("length", "<u8"),
        ("crc32", "<u4"),
        ("documents", "<u4"),
        ("sentences", "<u4"),
        ("tokens", "<u4"),
        ("blocks_128", "<u4"),
        ("blocks_512", "<u4"),
        ("first_document", "<u8"),
    ]
)
"""One row a pack: payload position inside its shard, checksum, contents, the number of
`full_sentences` rows of length 128 and 512 (others are counted when first asked for), and the
number within the split of its first document (one that continues keeps its number)."""


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Raises:
        ValueError: the name could lead out of the split's folder, or the size is none.
    """

    name: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not _SHARD_NAME.fullmatch(self.name):
            raise ValueError(f"shard name {self.name!r} is not a plain file name")
        if not isinstance(self.bytes, int) or self.bytes < 0:
            raise ValueError(f"shard {self.name} of {self.bytes!r} bytes")


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the five special tokens."""

    bos: int
    pad: int
    eos: int
    unk: int
    mask: int


@dataclass(frozen=True)
class Manifest:
    """One split of one corpus.

    Attributes:
        folder: where it lies, and is written; of no use where the corpus is remote.
        sha256: hash of manifest.json, which itself names the hash of packs.npy: the identity.
        vocab_size: entries of the tokenizer.
        unigram_entropy: nats a token of the split's own token distribution (no specials): the
            loss of the best constant predictor.
        packs: structured array [packs] of PACK_DTYPE.
        store: where it is read from; the folder where none is given. Not part of the identity.
    """

    folder: Path
    sha256: str
    split: str
    tokenizer_sha256: str
    vocab_size: int
    special_tokens: SpecialTokens
    shards: tuple[Shard, ...]
    documents: int
    tokens: int
    unigram_entropy: float
    held_out_salt: str
    held_out_fraction: float
    packs: NDArray[Any]
    store: Store = field(default=cast(Store, None), compare=False)

    def __post_init__(self) -> None:
        if self.store is None:
            object.__setattr__(self, "store", LocalStore(self.folder))


def write_manifest(manifest: Manifest) -> None:
    """Write packs.npy, then manifest.json (`sha256` of the argument is ignored)."""
    import io

    buffer = io.BytesIO()
    np.save(buffer, manifest.packs, allow_pickle=False)
    atomic_write(manifest.folder / "packs.npy", buffer.getvalue())
    write_json(
        manifest.folder / "manifest.json",
        {
            "format_version": FORMAT_VERSION,
            "split": manifest.split,
            "tokenizer_sha256": manifest.tokenizer_sha256,
            "vocab_size": manifest.vocab_size,
            "special_tokens": vars(manifest.special_tokens),
            "shards": [vars(shard) for shard in manifest.shards],
            "documents": manifest.documents,
            "tokens": manifest.tokens,
            "unigram_entropy": manifest.unigram_entropy,
            "held_out": {"salt": manifest.held_out_salt, "fraction": manifest.held_out_fraction},
            "packs": len(manifest.packs),
            "packs_sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
        },
    )


def read_manifest(folder: Path) -> Manifest:
    """`open_manifest` of a local folder."""
    return open_manifest(LocalStore(folder))


def open_manifest(store: Store) -> Manifest:
    """Read a split's index and check packs.npy against it.

    Args:
        store: the split's folder.

    Raises:
        ConfigError: no manifest there.
        DataFault: another format version, packs.npy is not the one the manifest names, or the
            folder cannot be read.
    """
    where = store.where("manifest.json")
    try:
        raw = store.read_bytes("manifest.json")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(
            f"{store.where()}: no manifest.json, so not a prepared split",
            "run `roberta-dist prepare output=CORPUS`, then give data.path=CORPUS",
        ) from error
    except OSError as error:
        raise DataFault(f"{where}: cannot be read ({error})") from error
    try:
        return _parse(store, raw)
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise DataFault(f"{where}: damaged ({error})", "prepare the corpus again") from error


def _parse(store: Store, raw: bytes) -> Manifest:
    values = json.loads(raw)
    version = values["format_version"]
    if version != FORMAT_VERSION:
        raise DataFault(
            f"{store.where('manifest.json')}: format_version={version}, this version reads "
            f"{FORMAT_VERSION}",
            "prepare the corpus again",
        )
    shards = tuple(Shard(**shard) for shard in values["shards"])
    packs_path = store.local_path("packs.npy", Content(values["packs_sha256"]))
    packs = np.load(packs_path, mmap_mode="r", allow_pickle=False)
    if len(packs) and int(packs["shard"].max()) >= len(shards):
        raise ValueError(f"packs.npy names shard {int(packs['shard'].max())} of {len(shards)}")
    return Manifest(
        folder=store.folder or Path(store.where()),
        sha256=hashlib.sha256(raw).hexdigest(),
        split=values["split"],
        tokenizer_sha256=values["tokenizer_sha256"],
        vocab_size=values["vocab_size"],
        special_tokens=SpecialTokens(**values["special_tokens"]),
        shards=shards,
        documents=values["documents"],
        tokens=values["tokens"],
        unigram_entropy=values["unigram_entropy"],
        held_out_salt=values["held_out"]["salt"],
        held_out_fraction=values["held_out"]["fraction"],
        packs=packs,
        store=store.with_contents({s.name: Content(s.sha256, s.bytes) for s in shards}),
    )
