"""The index of a split: `manifest.json` (what it is) and `packs.npy` (where each pack lies).

CORPUS/tokenizer/           vocab.json, merges.txt, tokenizer.json, tokenizer_config.json, ...
CORPUS/train/               manifest.json, packs.npy, shard-000000.tar, ...
CORPUS/held_out/            the same
CORPUS/prepare.json         settings and counts of the prepare that wrote it
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roberta_dist.errors import ConfigError, DataFault
from roberta_dist.runtime.files import atomic_write, write_json

FORMAT_VERSION = 1

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
    ]
)
"""One row a pack: payload position inside its shard, checksum, contents, and the number of
`full_sentences` rows of length 128 and 512 (others are counted when first asked for)."""


@dataclass(frozen=True)
class Shard:
    """One tar file."""

    name: str
    bytes: int
    sha256: str


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
        folder: where it lies; not part of the identity.
        sha256: hash of manifest.json, which itself names the hash of packs.npy: the identity.
        vocab_size: entries of the tokenizer.
        unigram_entropy: nats a token of the split's own token distribution (no specials): the
            loss of the best constant predictor.
        packs: structured array [packs] of PACK_DTYPE.
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
    """Read a split's index and check packs.npy against it.

    Raises:
        ConfigError: no manifest there.
        DataFault: another format version, or packs.npy is not the one the manifest names.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise ConfigError(
            f"{folder}: no manifest.json, so not a prepared split",
            "run `roberta-dist prepare output=CORPUS`, then give data.path=CORPUS",
        )
    raw = path.read_bytes()
    try:
        values = json.loads(raw)
        version = values["format_version"]
        if version != FORMAT_VERSION:
            raise DataFault(
                f"{path}: format_version={version}, this version reads {FORMAT_VERSION}",
                "prepare the corpus again",
            )
        packs_bytes = (folder / "packs.npy").read_bytes()
        if hashlib.sha256(packs_bytes).hexdigest() != values["packs_sha256"]:
            raise DataFault(f"{folder / 'packs.npy'}: not the file that {path} names")
        packs = np.load(folder / "packs.npy", mmap_mode="r", allow_pickle=False)
        return Manifest(
            folder=folder,
            sha256=hashlib.sha256(raw).hexdigest(),
            split=values["split"],
            tokenizer_sha256=values["tokenizer_sha256"],
            vocab_size=values["vocab_size"],
            special_tokens=SpecialTokens(**values["special_tokens"]),
            shards=tuple(Shard(**shard) for shard in values["shards"]),
            documents=values["documents"],
            tokens=values["tokens"],
            unigram_entropy=values["unigram_entropy"],
            held_out_salt=values["held_out"]["salt"],
            held_out_fraction=values["held_out"]["fraction"],
            packs=packs,
        )
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise DataFault(f"{path}: damaged ({error})", "prepare the corpus again") from error
