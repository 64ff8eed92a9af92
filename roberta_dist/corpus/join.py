"""Joining phase of prepare: results of all shards become the manifests."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roberta_dist.config.roots import PrepareConfig
from roberta_dist.corpus.bpe import Bpe
from roberta_dist.corpus.encode import Encoder
from roberta_dist.corpus.encoding import ShardJob, ShardResult, shard_entry
from roberta_dist.corpus.manifest import PACK_DTYPE, Manifest, read_manifest, write_manifest
from roberta_dist.corpus.reading import ReadCounts
from roberta_dist.corpus.sources import SourceFiles


def join_shards(
    config: PrepareConfig,
    bpe: Bpe,
    results: dict[str, list[tuple[ShardJob, ShardResult]]],
    counts: ReadCounts,
    settings: dict[str, Any],
    source: SourceFiles,
) -> dict[str, Any]:
    """Write both manifests.

    Args:
        results: complete shards of each split, in order.
        counts: of the reading phase.
        settings: identity settings, as prepare.json keeps them.

    Returns:
        What prepare.json will say.
    """
    splits = {}
    for split, shards in results.items():
        manifest = _manifest(config, bpe, split, [s for s in shards if len(s[1].packs)])
        write_manifest(manifest)
        splits[split] = {
            "documents": manifest.documents,
            "duplicates": sum(result.duplicates for _, result in shards),
            "forced_cuts": sum(result.forced_cuts for _, result in shards),
            "manifest_sha256": read_manifest(manifest.folder).sha256,
            "packs": len(manifest.packs),
            "shards": len(manifest.shards),
            "text_bytes": sum(result.text_bytes for _, result in shards),
            "tokens": manifest.tokens,
            "unigram_entropy": manifest.unigram_entropy,
        }
    return {
        "settings": settings,
        "source": {"files": len(source.files), "sha256": source.fingerprint(with_times=False)},
        "read": asdict(counts),
        "splits": splits,
        "tokenizer": {
            "backend": Encoder(bpe).backend,
            "sha256": bpe.sha256,
            "vocab_size": bpe.size,
        },
    }


def _manifest(
    config: PrepareConfig, bpe: Bpe, split: str, shards: list[tuple[ShardJob, ShardResult]]
) -> Manifest:
    packs = [result.packs.copy() for _, result in shards]
    for number, rows in enumerate(packs):
        rows["shard"] = number
    joined = np.concatenate(packs) if packs else np.zeros(0, dtype=PACK_DTYPE)
    return Manifest(
        folder=Path(config.output) / split,
        sha256="",
        split=split,
        tokenizer_sha256=bpe.sha256,
        vocab_size=bpe.size,
        special_tokens=bpe.specials,
        shards=tuple(shard_entry(job, result) for job, result in shards),
        documents=sum(result.documents for _, result in shards),
        tokens=int(joined["tokens"].sum()),
        unigram_entropy=_entropy(np.sum([result.token_counts for _, result in shards], axis=0)),
        held_out_salt=config.corpus.held_out_salt,
        held_out_fraction=config.corpus.held_out_fraction,
        packs=joined,
    )


def _entropy(counts: NDArray[np.int64]) -> float:
    """Nats a token of the distribution that `counts` [vocab] describes."""
    seen = counts[counts > 0]
    shares = seen / seen.sum()
    return float(-(shares * np.log(shares)).sum())
