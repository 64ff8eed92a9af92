"""Joining phase of prepare: results of all shards become the manifests."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from roberta_dist.config.roots import PrepareConfig
from roberta_dist.corpus.bpe import Bpe
from roberta_dist.corpus.encode import Encoder
from roberta_dist.corpus.encoding import ShardJob, ShardResult, shard_entry
from roberta_dist.corpus.manifest import PACK_DTYPE, Manifest, read_manifest, write_manifest
from roberta_dist.corpus.reading import ReadCounts
from roberta_dist.corpus.report import HTML_NAME, write_html
from roberta_dist.corpus.sources import SourceFiles
from roberta_dist.corpus.statistics import total


def join_shards(
    config: PrepareConfig,
    bpe: Bpe,
    results: dict[str, list[tuple[ShardJob, ShardResult]]],
    counts: ReadCounts,
    settings: dict[str, Any],
    source: SourceFiles,
) -> dict[str, Any]:
    """Write both manifests and corpus.html.

    Args:
        results: complete shards of each split, in order.
        counts: of the reading phase.
        settings: identity settings, as prepare.json keeps them.

    Returns:
        What prepare.json will say.
    """
    splits = {}
    statistics = {
        split: total((result.statistics for _, result in shards), bpe.size)
        for split, shards in results.items()
    }
    for split, shards in results.items():
        full = [shard for shard in shards if len(shard[1].packs)]
        manifest = _manifest(config, bpe, split, full, statistics[split].unigram_entropy)
        write_manifest(manifest)
        splits[split] = {
            "documents": manifest.documents,
            "duplicates": sum(result.duplicates for _, result in shards),
            "forced_cuts": sum(result.forced_cuts for _, result in shards),
            "manifest_sha256": read_manifest(manifest.folder).sha256,
            "packs": len(manifest.packs),
            "sentences": statistics[split].sentences,
            "shards": len(manifest.shards),
            "text_bytes": sum(result.text_bytes for _, result in shards),
            "tokens": manifest.tokens,
            "unigram_entropy": manifest.unigram_entropy,
        }
    report = {
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
    write_html(Path(config.output) / HTML_NAME, report, statistics, bpe)
    return report


def _manifest(
    config: PrepareConfig,
    bpe: Bpe,
    split: str,
    shards: list[tuple[ShardJob, ShardResult]],
    unigram_entropy: float,
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
        unigram_entropy=unigram_entropy,
        held_out_salt=config.corpus.held_out_salt,
        held_out_fraction=config.corpus.held_out_fraction,
        packs=joined,
    )
