"""`roberta-dist prepare`: read → tokenizer → shards → manifest, each step kept when it is whole."""

from __future__ import annotations

import io
import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from roberta_dist.config.corpus import CorpusConfig, TokenizerConfig
from roberta_dist.config.roots import PrepareConfig
from roberta_dist.corpus.bpe import Vocabulary, load_vocabulary, save_vocabulary, train_vocabulary
from roberta_dist.corpus.encode import DocumentEncoder, open_encoder
from roberta_dist.corpus.manifest import Manifest, Shard, write_manifest
from roberta_dist.corpus.shards import write_shard
from roberta_dist.corpus.sources import open_source
from roberta_dist.corpus.spool import BUCKETS, SPLITS, read_buckets, sample_texts, spool
from roberta_dist.errors import ConfigError
from roberta_dist.runtime.files import atomic_write, storage_errors, write_json
from roberta_dist.units import MIB, human_count

BYTES_PER_TOKEN = 4.0
"""Guess by which text is shared out to shards; only their sizes depend on it."""


@dataclass(frozen=True)
class _Job:
    """One shard of one split, for a worker process."""

    folder: Path
    split: str
    number: int
    buckets: range
    capacity: int

    @property
    def path(self) -> Path:
        return self.folder / self.split / f"shard-{self.number:06d}.tar"

    @property
    def result(self) -> Path:
        """Written after the shard: its presence says the shard is whole."""
        return self.folder / "work" / f"{self.split}-{self.number:06d}.npz"


def settings_of(config: PrepareConfig) -> dict[str, Any]:
    """What decides the output: every key but the number of workers."""
    plain: dict[str, Any] = json.loads(
        json.dumps({"corpus": asdict(config.corpus), "tokenizer": asdict(config.tokenizer)})
    )
    del plain["corpus"]["workers"]
    return plain


def prepare(config: PrepareConfig) -> int:
    """Write a corpus folder, or leave a complete one with the same settings alone.

    Raises:
        ConfigError: other settings, no document, an empty split.
        DataFault: a damaged source file.
        StorageError: the disk is full or the folder cannot be written.
    """
    folder = Path(config.output)
    if _is_complete(folder, config):
        print(f"{folder}: already complete, nothing to do")
        return 0
    with storage_errors(folder):
        (folder / "work").mkdir(parents=True, exist_ok=True)
    write_json(folder / "work" / "settings.json", settings_of(config))
    source = open_source(config.corpus)
    spool(source, config.corpus, folder / "work" / "spool", config.progress)
    read = json.loads((folder / "work" / "spool" / "COMPLETE").read_text())
    _check_not_empty(read, config.corpus)
    vocabulary = _tokenizer(config.tokenizer, folder, read["split_bytes"]["train"])
    jobs = [job for split in SPLITS for job in _jobs(config.corpus, folder, split, read)]
    _run(jobs, config.corpus, config.progress)
    manifests = [
        _write_split(config.corpus, folder, vocabulary, [j for j in jobs if j.split == split])
        for split in SPLITS
        if any(job.split == split for job in jobs)
    ]
    forced = sum(int(np.load(job.result)["forced_cuts"]) for job in jobs)
    counts = read["counts"] | {"forced_cuts": forced}
    write_json(
        folder / "prepare.json",
        {
            "settings": settings_of(config),
            "counts": counts,
            "tokens": {m.split: m.tokens for m in manifests},
            "documents": {m.split: m.documents for m in manifests},
        },
    )
    shutil.rmtree(folder / "work")
    _print_table(folder, counts, manifests)
    return 0


def _is_complete(folder: Path, config: PrepareConfig) -> bool:
    """True for a finished folder with these settings.

    Raises:
        ConfigError: a finished or begun folder with others.
    """
    for path in (folder / "prepare.json", folder / "work" / "settings.json"):
        if not path.is_file():
            continue
        found = json.loads(path.read_text())
        old, new = found.get("settings", found), settings_of(config)
        differing = [
            f"{group}.{key}: {old[group].get(key)} → {new[group][key]}"
            for group in new
            for key in new[group]
            if old[group].get(key) != new[group][key]
        ]
        if differing:
            raise ConfigError(
                f"{folder} was prepared with other settings: {'; '.join(differing)}",
                "give another output=, or delete the folder",
            )
    return (folder / "prepare.json").is_file()


def _check_not_empty(read: dict[str, Any], config: CorpusConfig) -> None:
    counts = read["counts"]
    if not counts["documents"] or not read["split_bytes"]["train"]:
        raise ConfigError(
            f"corpus.paths={config.paths}: {counts['documents']} documents, "
            f"{counts['empty']} of them empty: nothing to train on",
            "check corpus.paths, corpus.source and corpus.text_field",
        )
    if config.held_out_fraction and not read["split_bytes"]["held_out"]:
        raise ConfigError(
            f"corpus.held_out_fraction={config.held_out_fraction}: no document of "
            f"{counts['documents']} falls into the held-out split",
            "raise the fraction, or set it to 0",
        )


def _tokenizer(config: TokenizerConfig, folder: Path, train_bytes: int) -> Vocabulary:
    target = folder / "tokenizer"
    if not (target / "vocab.json").is_file():
        if config.path is not None:
            vocabulary = load_vocabulary(Path(config.path))
        else:
            share = min(1.0, config.train_mib * MIB / train_bytes)
            texts = sample_texts(folder / "work" / "spool", share)
            vocabulary = train_vocabulary(texts, config.vocab_size)
        save_vocabulary(vocabulary, target)
    return load_vocabulary(target)


def _jobs(config: CorpusConfig, folder: Path, split: str, read: dict[str, Any]) -> list[_Job]:
    tokens = read["split_bytes"][split] / BYTES_PER_TOKEN
    shards = min(BUCKETS, int(np.ceil(2 * tokens / (config.shard_mib * MIB))))
    capacity = max(64, int(config.pack_mib * MIB / 2))
    edges = [BUCKETS * number // shards for number in range(shards + 1)] if shards else []
    return [
        _Job(folder, split, number, range(edges[number], edges[number + 1]), capacity)
        for number in range(shards)
    ]


def _encode(job: _Job) -> None:
    """In a worker process: one shard, then its result."""
    vocabulary = load_vocabulary(job.folder / "tokenizer")
    documents = read_buckets(job.folder / "work" / "spool", job.split, job.buckets)
    texts = [document.text for document in documents]
    encoder = DocumentEncoder(
        vocabulary, open_encoder(vocabulary, [t[:2000] for t in texts[:50]]), job.capacity
    )
    result = write_shard(job.path, job.number, texts, encoder, job.capacity, vocabulary.size)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        shard=np.array([json.dumps(vars(result.shard))]),
        packs=result.packs,
        token_counts=result.token_counts,
        documents=result.documents,
        forced_cuts=result.forced_cuts,
    )
    atomic_write(job.result, buffer.getvalue())


def _run(jobs: list[_Job], config: CorpusConfig, progress: bool) -> None:
    waiting = [job for job in jobs if not job.result.is_file()]
    workers = min(config.workers or os.cpu_count() or 1, max(1, len(waiting)))
    bar = tqdm(total=len(jobs), initial=len(jobs) - len(waiting), desc="encoding", unit="shard",
               disable=not progress)  # fmt: skip
    with bar, ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for _ in pool.map(_encode, waiting):
            bar.update()


def _entropy(token_counts: NDArray[np.int64]) -> float:
    """Nats a token of the distribution that the counts are."""
    shares = token_counts[token_counts > 0] / token_counts.sum()
    return float(-(shares * np.log(shares)).sum())


def _write_split(
    config: CorpusConfig, folder: Path, vocabulary: Vocabulary, jobs: list[_Job]
) -> Manifest:
    results = [np.load(job.result, allow_pickle=False) for job in jobs]
    packs = np.concatenate([result["packs"] for result in results])
    manifest = Manifest(
        folder=folder / jobs[0].split,
        sha256="",
        split=jobs[0].split,
        tokenizer_sha256=vocabulary.sha256(),
        vocab_size=vocabulary.size,
        special_tokens=vocabulary.special_tokens,
        shards=tuple(Shard(**json.loads(str(result["shard"][0]))) for result in results),
        documents=sum(int(result["documents"]) for result in results),
        tokens=int(packs["tokens"].sum()),
        unigram_entropy=_entropy(sum(result["token_counts"] for result in results)),
        held_out_salt=config.held_out_salt,
        held_out_fraction=config.held_out_fraction,
        packs=packs,
    )
    write_manifest(manifest)
    return manifest


def _print_table(folder: Path, counts: dict[str, int], manifests: list[Manifest]) -> None:
    tokens = sum(manifest.tokens for manifest in manifests)
    print(f"{folder}: {counts['bytes'] / 1e6:.1f} MB of text, {human_count(tokens)} tokens, "
          f"{counts['bytes'] / max(1, tokens):.2f} bytes a token")  # fmt: skip
    for manifest in manifests:
        print(
            f"  {manifest.split:9} {manifest.documents:>9,} documents {manifest.tokens:>13,} tokens "
            f"{len(manifest.packs):>6,} packs {len(manifest.shards):>4,} shards "
            f"unigram entropy {manifest.unigram_entropy:.4f} nats"
        )
    dropped = {name: n for name, n in counts.items() if n and name not in ("documents", "bytes")}
    print("  counted   " + ", ".join(f"{name}={n:,}" for name, n in dropped.items()))
