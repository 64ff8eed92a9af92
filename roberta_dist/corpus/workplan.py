"""What one prepare has to do: its parts, its buckets, and which of them are done.

A pure function of the configuration and the source, so that every task of every phase sees the same
plan without talking to the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from roberta_dist.config.corpus import SentenceRule
from roberta_dist.config.prepare import Phase
from roberta_dist.config.roots import PrepareConfig
from roberta_dist.corpus.encoding import ShardJob
from roberta_dist.corpus.gather import Selection, select
from roberta_dist.corpus.manifest import FORMAT_VERSION
from roberta_dist.corpus.parts import part_name, plan_parts
from roberta_dist.corpus.reading import HELD_OUT, TRAIN, PartJob
from roberta_dist.corpus.sources import SourceFiles
from roberta_dist.corpus.spool import bucket_count
from roberta_dist.corpus.workfolder import WORK_NAME, tasks_begun
from roberta_dist.errors import ConfigError
from roberta_dist.units import MIB

BYTES_PER_TOKEN = 2
MIN_PACK_TOKENS = 1024
NAMED = 5
"""Missing pieces of work that a message names."""


@dataclass(frozen=True)
class WorkPlan:
    """The work of one prepare.

    Attributes:
        settings: identity settings.
        part_jobs: of the reading phase; part i belongs to task i mod tasks.
        buckets: of each split, one a shard.
    """

    config: PrepareConfig
    source: SourceFiles
    settings: dict[str, Any]
    part_jobs: tuple[PartJob, ...]
    buckets: dict[str, int]

    @property
    def output(self) -> Path:
        """CORPUS."""
        return Path(self.config.output)

    @property
    def work(self) -> Path:
        """What an unfinished prepare leaves."""
        return self.output / WORK_NAME

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer."""
        return self.output / "tokenizer"

    @property
    def drops(self) -> Path:
        """List of near duplicates: what the join leaves."""
        return self.work / "drops.npy"

    @property
    def state(self) -> dict[str, Any]:
        """What must be equal for half-finished work to be gone on with."""
        return {
            "settings": self.settings,
            "source": self.source.fingerprint(with_times=True),
            "layout": [FORMAT_VERSION, len(self.part_jobs), self.buckets],
        }

    @cached_property
    def selection(self) -> Selection:
        """Documents within `corpus.max_mib`; all parts must be read."""
        max_mib = self.config.corpus.max_mib
        return select(self.work / "parts", len(self.part_jobs), self.buckets, max_mib)

    @cached_property
    def shard_jobs(self) -> tuple[ShardJob, ...]:
        """Of the encoding phase, training first; shard i belongs to task i mod tasks."""
        corpus = self.config.corpus
        by_library = corpus.sentences is SentenceRule.splitter
        return tuple(
            ShardJob(
                split=split,
                bucket=bucket,
                output=self.output,
                selection=self.selection,
                drops=self.drops,
                done=self.work / "done",
                pack_tokens=_pack_tokens(self.config),
                deduplicate=corpus.deduplicate,
                split_language=corpus.language if by_library else None,
            )
            for split, count in self.buckets.items()
            for bucket in range(count)
        )

    def check_read(self) -> None:
        """Raises ConfigError where a part is missing."""
        missing = [job.number for job in self.part_jobs if not job.marker.is_file()]
        self._check(Phase.read, missing, [part_name(number) for number in missing])

    def check_tokenizer(self) -> None:
        """Raises ConfigError where the tokenizer is missing."""
        missing = [] if (self.tokenizer / "vocab.json").is_file() else [0]  # written last
        self._check(Phase.tokenizer, missing, ["the tokenizer"])

    def check_joined(self) -> None:
        """Raises ConfigError where the list of near duplicates is missing."""
        missing = [] if self.drops.is_file() else [0]
        self._check(Phase.join, missing, ["the list of near duplicates"])

    def check_encoded(self) -> None:
        """Raises ConfigError where a shard is missing."""
        missing = [n for n, job in enumerate(self.shard_jobs) if not job.result.is_file()]
        self._check(Phase.encode, missing, [self.shard_jobs[number].name for number in missing])

    def _check(self, phase: Phase, missing: Sequence[int], names: Sequence[str]) -> None:
        if not missing:
            return
        tasks = tasks_begun(self.output, phase.value) or self.config.prepare.tasks
        owners = sorted({number % tasks for number in missing})
        by_name = ", ".join(
            f"{name} (task {number % tasks} of {tasks})" if phase.shared else name
            for number, name in list(zip(missing, names, strict=True))[:NAMED]
        )
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        task = f" prepare.task={owners[0]} prepare.tasks={tasks}" if phase.shared else ""
        others = f", and tasks {owners[1:]}" if len(owners) > 1 else ""
        raise ConfigError(
            f"prepare.phase={self.config.prepare.phase.value}: prepare.phase={phase.value} has not "
            f"given {by_name}{more} yet",
            f"run the same command with prepare.phase={phase.value}{task}{others} first, or wait "
            "for it; what is complete is not done again",
        )


def make_plan(config: PrepareConfig, source: SourceFiles, settings: dict[str, Any]) -> WorkPlan:
    """Plan the work.

    Raises:
        ConfigError: packs too small to hold anything.
    """
    corpus = config.corpus
    if _pack_tokens(config) < MIN_PACK_TOKENS:
        least = MIN_PACK_TOKENS * BYTES_PER_TOKEN / MIB
        raise ConfigError(
            f"corpus.pack_mib={corpus.pack_mib}: {_pack_tokens(config)} tokens in a pack",
            f"give at least {least:.4f} ({MIN_PACK_TOKENS} tokens)",
        )
    shares = {TRAIN: 1.0 - corpus.held_out_fraction, HELD_OUT: corpus.held_out_fraction}
    buckets = {
        split: bucket_count(source.text_bytes * share, corpus.shard_mib, corpus.pack_mib)
        for split, share in shares.items()
        if share > 0
    }
    folder = Path(config.output) / WORK_NAME / "parts"
    parts = enumerate(plan_parts(source.units))
    jobs = tuple(PartJob(number, units, corpus, folder, buckets) for number, units in parts)
    return WorkPlan(config, source, settings, jobs, buckets)


def _pack_tokens(config: PrepareConfig) -> int:
    return int(config.corpus.pack_mib * MIB) // BYTES_PER_TOKEN
