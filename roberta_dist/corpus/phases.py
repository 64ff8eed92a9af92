"""The phases of prepare. Each does what is still missing of its task, and may be run again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from roberta_dist.corpus.bpe import load_bpe, save_bpe, train_bpe
from roberta_dist.corpus.encode import cut_pieces
from roberta_dist.corpus.encoding import encode_shard, read_result
from roberta_dist.corpus.gather import bucket_rows, bucket_texts, drop_copies
from roberta_dist.corpus.join import find_near_duplicates, write_drops
from roberta_dist.corpus.merge import merge_shards
from roberta_dist.corpus.outcome import describe
from roberta_dist.corpus.pool import ordered_map
from roberta_dist.corpus.reading import TRAIN, read_part
from roberta_dist.corpus.workfolder import sweep
from roberta_dist.corpus.workplan import WorkPlan
from roberta_dist.errors import ConfigError
from roberta_dist.runtime.files import write_json
from roberta_dist.units import KIB, MIB

Job = TypeVar("Job")

# Merging inside one word costs the square of its length: 10 MB without a space would take hours.
LONGEST_TRAINING_PIECE = 4 * KIB


def read(plan: WorkPlan) -> None:
    """Read this task's parts."""
    mine = _of_task(plan, plan.part_jobs)
    missing = [job for job in mine if not job.marker.is_file()]
    _work(plan, read_part, missing, len(mine), "reading", "part")


def train_tokenizer(plan: WorkPlan) -> None:
    """Train the tokenizer on a sample by content hash, or take the given one."""
    plan.check_read()
    _check_not_empty(plan)
    if (plan.tokenizer / "vocab.json").is_file():  # written last
        return
    given = plan.config.tokenizer.path
    if given is not None:
        bpe = load_bpe(Path(given))
    else:
        bpe = train_bpe(_sample(plan), plan.config.tokenizer.vocab_size)
    save_bpe(bpe, plan.tokenizer)


def join(plan: WorkPlan) -> None:
    """List the near duplicates; none where they are kept."""
    plan.check_read()
    _check_not_empty(plan)
    if plan.drops.is_file():
        return
    corpus = plan.config.corpus
    dropped = np.zeros(0, dtype=np.uint64)
    if corpus.near_duplicates:
        dropped = find_near_duplicates(plan.selection, corpus.near_duplicate_threshold)
    write_drops(plan.drops, dropped)


def encode(plan: WorkPlan) -> None:
    """Encode this task's buckets into shards."""
    plan.check_read()
    plan.check_tokenizer()
    plan.check_joined()
    mine = _of_task(plan, plan.shard_jobs)
    missing = [job for job in mine if not job.result.is_file()]
    _work(plan, encode_shard, missing, len(mine), "encoding", "shard")


def merge(plan: WorkPlan) -> None:
    """Check every shard, write the manifests and, last, prepare.json."""
    plan.check_read()
    plan.check_tokenizer()
    plan.check_joined()
    plan.check_encoded()
    results = {
        split: [(job, read_result(job)) for job in plan.shard_jobs if job.split == split]
        for split in plan.buckets
    }
    report = merge_shards(plan, load_bpe(plan.tokenizer), results)
    sweep(plan.output)
    write_json(plan.output / "prepare.json", report)
    # Some network file systems keep the open lock file, and with it the folder, for a while.
    shutil.rmtree(plan.work, ignore_errors=True)
    print(describe(report))


def _of_task(plan: WorkPlan, jobs: Sequence[Job]) -> Sequence[Job]:
    return jobs[plan.config.prepare.task :: plan.config.prepare.tasks]


def _work(
    plan: WorkPlan,
    function: Callable[[Job], None],
    missing: Sequence[Job],
    total: int,
    name: str,
    unit: str,
) -> None:
    """Do the `missing` of `total` pieces of work in worker processes."""
    bar = tqdm(
        total=total, initial=total - len(missing), desc=name, unit=unit,
        disable=not plan.config.progress,
    )  # fmt: skip
    with bar:
        for _ in ordered_map(function, missing, plan.config.corpus.workers):
            bar.update(1)


def _check_not_empty(plan: WorkPlan) -> None:
    corpus, counts = plan.config.corpus, plan.selection.counts
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


def _sample(plan: WorkPlan) -> Iterator[str]:
    """Training text in shuffled order, up to `tokenizer.train_mib`: a sample by content hash."""
    limit = plan.config.tokenizer.train_mib * MIB
    bar = tqdm(
        desc="training the tokenizer", unit="B", unit_scale=True, disable=not plan.config.progress
    )
    with bar:
        for bucket in range(plan.buckets[TRAIN]):
            rows = bucket_rows(plan.selection, plan.selection.bucket_number(TRAIN, bucket))
            if plan.config.corpus.deduplicate:
                rows = drop_copies(rows)
            for text in bucket_texts(plan.selection, rows):
                if bar.n >= limit:
                    return
                bar.update(len(text))
                for piece, _ in cut_pieces(text.decode("utf-8"), LONGEST_TRAINING_PIECE):
                    yield piece
