"""Merging phase of prepare: results of all shards become the manifests."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from roberta_dist.config.roots import PrepareConfig
from roberta_dist.corpus.bpe import Bpe
from roberta_dist.corpus.encoding import ShardJob, ShardResult, shard_encoder, shard_entry
from roberta_dist.corpus.manifest import PACK_DTYPE, Manifest, read_manifest, write_manifest
from roberta_dist.corpus.report import HTML_NAME, write_html
from roberta_dist.corpus.statistics import total
from roberta_dist.corpus.workplan import WorkPlan
from roberta_dist.errors import DataFault

DROPPED = ("empty", "too_short", "other_language", "beyond_max_mib")
"""Why reading leaves documents out."""


def merge_shards(
    plan: WorkPlan, bpe: Bpe, results: dict[str, list[tuple[ShardJob, ShardResult]]]
) -> dict[str, Any]:
    """Write both manifests and corpus.html.

    Args:
        results: complete shards of each split, in order.

    Returns:
        What prepare.json will say.

    Raises:
        DataFault: a document is unaccounted for.
    """
    splits = {}
    statistics = {
        split: total((result.statistics for _, result in shards), bpe.size)
        for split, shards in results.items()
    }
    for split, shards in results.items():
        full = [shard for shard in shards if len(shard[1].packs)]
        manifest = _manifest(plan.config, bpe, split, full, statistics[split].unigram_entropy)
        write_manifest(manifest)
        splits[split] = {
            "documents": manifest.documents,
            "duplicates": sum(result.duplicates for _, result in shards),
            "forced_cuts": sum(result.forced_cuts for _, result in shards),
            "manifest_sha256": read_manifest(manifest.folder).sha256,
            "near_duplicates": sum(result.near_duplicates for _, result in shards),
            "packs": len(manifest.packs),
            "sentences": statistics[split].sentences,
            "shards": len(manifest.shards),
            "text_bytes": sum(result.text_bytes for _, result in shards),
            "tokens": manifest.tokens,
            "unigram_entropy": manifest.unigram_entropy,
        }
    read = asdict(plan.selection.counts) | {"beyond_max_mib": plan.selection.beyond}
    check_accounts(read, splits)
    report = {
        "settings": plan.settings,
        "source": {
            "files": len(plan.source.files),
            "sha256": plan.source.fingerprint(with_times=False),
        },
        "read": read,
        "splits": splits,
        "tokenizer": {
            "backend": shard_encoder(plan.shard_jobs[0]).backend,
            "sha256": bpe.sha256,
            "vocab_size": bpe.size,
        },
    }
    write_html(plan.output / HTML_NAME, report, statistics, bpe)
    return report


def check_accounts(read: dict[str, Any], splits: dict[str, dict[str, Any]]) -> None:
    """Every document that was read is in a shard, or was left out for one counted reason.

    Raises:
        DataFault: the numbers do not add up.
    """
    dropped = {name: read[name] for name in DROPPED}
    for name in ("duplicates", "near_duplicates"):
        dropped[name] = sum(facts[name] for facts in splits.values())
    kept = sum(facts["documents"] for facts in splits.values())
    if read["documents"] != kept + sum(dropped.values()):
        raise DataFault(
            f"{read['documents']} documents were read, {kept} are in shards, and those left out "
            f"do not make up the rest: {dropped}",
            "remove the output folder, run prepare again, and report it",
        )


def _manifest(
    config: PrepareConfig,
    bpe: Bpe,
    split: str,
    shards: list[tuple[ShardJob, ShardResult]],
    unigram_entropy: float,
) -> Manifest:
    packs = [result.packs.copy() for _, result in shards]
    documents = 0
    for number, (rows, (_, result)) in enumerate(zip(packs, shards, strict=True)):
        rows["shard"] = number
        rows["first_document"] += documents
        documents += result.documents
    joined = np.concatenate(packs) if packs else np.zeros(0, dtype=PACK_DTYPE)
    return Manifest(
        folder=Path(config.output) / split,
        sha256="",
        split=split,
        tokenizer_sha256=bpe.sha256,
        vocab_size=bpe.size,
        special_tokens=bpe.specials,
        shards=tuple(shard_entry(job, result) for job, result in shards),
        documents=documents,
        tokens=int(joined["tokens"].sum()),
        unigram_entropy=unigram_entropy,
        held_out_salt=config.corpus.held_out_salt,
        held_out_fraction=config.corpus.held_out_fraction,
        packs=joined,
    )
