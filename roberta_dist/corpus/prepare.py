"""`roberta-dist prepare`: text in; tokenizer, shards and manifests out.

Three phases, each restartable: documents are read, split and spooled to disk; the tokenizer is
trained or loaded; every bucket of the spool becomes a shard. `prepare.json`, written last, marks
the corpus complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from roberta_dist.config.corpus import CorpusConfig, SentenceRule
from roberta_dist.config.fields import Resume
from roberta_dist.config.load import flatten, resume_classes
from roberta_dist.config.roots import PrepareConfig
from roberta_dist.corpus.bpe import Bpe, load_bpe, save_bpe, train_bpe
from roberta_dist.corpus.encode import cut_pieces
from roberta_dist.corpus.encoding import ShardJob, ShardResult, encode_shard, read_result
from roberta_dist.corpus.join import join_shards
from roberta_dist.corpus.outcome import describe, leave_alone
from roberta_dist.corpus.pool import ordered_map
from roberta_dist.corpus.reading import HELD_OUT, TRAIN, ReadCounts, spool_documents
from roberta_dist.corpus.sources import SourceFiles, open_source
from roberta_dist.corpus.spool import bucket_count, bucket_name, bucket_order, bucket_texts
from roberta_dist.corpus.workfolder import WORK_NAME, begin, locked, sweep
from roberta_dist.errors import ConfigError
from roberta_dist.runtime.files import write_json
from roberta_dist.units import KIB, MIB

BYTES_PER_TOKEN = 2
MIN_PACK_TOKENS = 1024
# Merging inside one word costs the square of its length: 10 MB without a space would take hours.
LONGEST_TRAINING_PIECE = 4 * KIB
NOT_IDENTITY = {"corpus.workers"}


def prepare(config: PrepareConfig) -> int:
    """Write the corpus of `config` into `config.output`; a complete one is left alone.

    Returns:
        0.

    Raises:
        ConfigError: no documents, an empty split, or `output` holds another corpus.
        DataFault: a source file that cannot be read, or a damaged output.
        StorageError: the disk is full or `output` cannot be written.
    """
    output = Path(config.output)
    settings = identity_settings(config)
    source = open_source(config.corpus)
    if leave_alone(output, settings, source):
        return 0
    _check_pack_size(config.corpus)
    if config.tokenizer.path is not None:
        load_bpe(Path(config.tokenizer.path))  # a bad path is said before anything is read
    with locked(output):
        state = {"settings": settings, "source": source.fingerprint(with_times=True)}
        message = begin(output, state)
        if message:
            print(f"{output}: {message}")
        buckets = _plan_buckets(config.corpus, source)
        counts = _read(config, source, buckets)
        bpe = _tokenizer(config, buckets)
        results = _encode(config, buckets)
        report = join_shards(config, bpe, results, counts, settings, source)
        sweep(output)
        write_json(output / "prepare.json", report)
        # Some network file systems keep the open lock file, and with it the folder, for a while.
        shutil.rmtree(output / WORK_NAME, ignore_errors=True)
    print(describe(report))
    return 0


def identity_settings(config: PrepareConfig) -> dict[str, Any]:
    """`group.key` → value of all that decides the output, as JSON stores it."""
    classes = resume_classes(config)
    settings = {
        key: value
        for key, value in flatten(config).items()
        if classes[key] is Resume.identity and key not in NOT_IDENTITY
    }
    stored: dict[str, Any] = json.loads(json.dumps(settings))
    return stored


def _check_pack_size(corpus: CorpusConfig) -> None:
    if _pack_tokens(corpus) < MIN_PACK_TOKENS:
        least = MIN_PACK_TOKENS * BYTES_PER_TOKEN / MIB
        raise ConfigError(
            f"corpus.pack_mib={corpus.pack_mib}: {_pack_tokens(corpus)} tokens in a pack",
            f"give at least {least:.4f} ({MIN_PACK_TOKENS} tokens)",
        )


def _pack_tokens(corpus: CorpusConfig) -> int:
    return int(corpus.pack_mib * MIB) // BYTES_PER_TOKEN


def _plan_buckets(corpus: CorpusConfig, source: SourceFiles) -> dict[str, int]:
    """Buckets of each split: a function of the size of the source and the settings alone."""
    fraction = corpus.held_out_fraction
    shares = {TRAIN: 1.0 - fraction, HELD_OUT: fraction}
    return {
        split: bucket_count(source.text_bytes * share, corpus.shard_mib, corpus.pack_mib)
        for split, share in shares.items()
        if share > 0
    }


def _read(config: PrepareConfig, source: SourceFiles, buckets: dict[str, int]) -> ReadCounts:
    work = Path(config.output) / WORK_NAME
    marker = work / "spool.json"
    if marker.is_file():
        return ReadCounts(**json.loads(marker.read_text(encoding="utf-8")))
    shutil.rmtree(work / "spool", ignore_errors=True)
    counts = spool_documents(source, config.corpus, work / "spool", buckets, config.progress)
    _check_not_empty(config.corpus, counts)
    write_json(marker, asdict(counts))
    return counts


def _check_not_empty(corpus: CorpusConfig, counts: ReadCounts) -> None:
    if counts.train + counts.held_out == 0:
        raise ConfigError(
            f"corpus.source={corpus.source.value}, corpus.paths={corpus.paths}: 0 documents with "
            f"text ({counts.documents} read, {counts.empty} empty)",
            "give files that hold text",
        )
    if counts.train == 0 or (corpus.held_out_fraction > 0 and counts.held_out == 0):
        raise ConfigError(
            f"corpus.held_out_fraction={corpus.held_out_fraction}: of {counts.documents} documents "
            f"{counts.train} are for training and {counts.held_out} held out; both need some",
            "change corpus.held_out_fraction or give more text; 0 holds nothing out",
        )


def _tokenizer(config: PrepareConfig, buckets: dict[str, int]) -> Bpe:
    """The corpus's tokenizer, from CORPUS/tokenizer where an earlier attempt wrote it."""
    folder = Path(config.output) / "tokenizer"
    if not (folder / "vocab.json").is_file():  # written last
        if config.tokenizer.path is not None:
            save_bpe(load_bpe(Path(config.tokenizer.path)), folder)
        else:
            texts = _sample(config, buckets)
            save_bpe(train_bpe(texts, config.tokenizer.vocab_size), folder)
    return load_bpe(folder)


def _sample(config: PrepareConfig, buckets: dict[str, int]) -> Iterator[str]:
    """Training text in shuffled order, up to `tokenizer.train_mib`: a sample by content hash."""
    spool = Path(config.output) / WORK_NAME / "spool"
    limit = config.tokenizer.train_mib * MIB
    bar = tqdm(
        desc="training the tokenizer", unit="B", unit_scale=True, disable=not config.progress
    )
    with bar:
        for bucket in range(buckets[TRAIN]):
            name = bucket_name(TRAIN, bucket)
            rows, _ = bucket_order(spool, name, config.corpus.deduplicate)
            for length, text in zip(rows["length"], bucket_texts(spool, name, rows), strict=True):
                if bar.n >= limit:
                    return
                bar.update(int(length))
                for piece, _ in cut_pieces(text, LONGEST_TRAINING_PIECE):
                    yield piece


def _split_language(corpus: CorpusConfig) -> str | None:
    return corpus.language if corpus.sentences is SentenceRule.splitter else None


def _encode(
    config: PrepareConfig, buckets: dict[str, int]
) -> dict[str, list[tuple[ShardJob, ShardResult]]]:
    """Encode the buckets that have no result yet; all results by split."""
    output = Path(config.output)
    jobs = [
        ShardJob(
            split=split,
            bucket=bucket,
            output=output,
            spool=output / WORK_NAME / "spool",
            done=output / WORK_NAME / "done",
            pack_tokens=_pack_tokens(config.corpus),
            deduplicate=config.corpus.deduplicate,
            split_language=_split_language(config.corpus),
        )
        for split, count in buckets.items()
        for bucket in range(count)
    ]
    missing = [job for job in jobs if not job.result.is_file()]
    bar = tqdm(
        total=len(jobs), initial=len(jobs) - len(missing), desc="encoding", unit="shard",
        disable=not config.progress,
    )  # fmt: skip
    with bar:
        for _ in ordered_map(encode_shard, missing, config.corpus.workers):
            bar.update(1)
    return {split: [(j, read_result(j)) for j in jobs if j.split == split] for split in buckets}
