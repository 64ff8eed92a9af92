"""From (corpus, seed, next_row) to this rank's micro-batches, read ahead by one thread."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roberta_dist.config.data import DataConfig, MaskingConfig
from roberta_dist.corpus.manifest import Manifest, open_manifest
from roberta_dist.corpus.opening import open_store
from roberta_dist.errors import ConfigError
from roberta_dist.runtime.world import World
from roberta_dist.stream.batch import Batch, block_tokens, make_batch, weightless_row
from roberta_dist.stream.counts import block_counts
from roberta_dist.stream.masking import MaskRule, mask_rule
from roberta_dist.stream.order import PLAN_VERSION, Order, derive_shuffle, rank_rows
from roberta_dist.stream.packs import BlockCache, PackReader, check_shards
from roberta_dist.units import MIB


@dataclass(frozen=True)
class Stream:
    """Everything that decides the rows of a run; the same on every rank.

    Attributes:
        manifest: the training split.
        order: which block each row is.
        rule: how rows are masked.
        config: the `data` group.
        seed: `train.seed`.
        global_batch_size: rows in one step.
    """

    manifest: Manifest
    order: Order
    rule: MaskRule
    config: DataConfig
    seed: int
    global_batch_size: int

    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for `next_row` to mean the same rows."""
        return {
            "plan_version": PLAN_VERSION,
            "manifest_sha256": self.manifest.sha256,
            "tokenizer_sha256": self.manifest.tokenizer_sha256,
            "seed": self.seed,
            "global_batch_size": self.global_batch_size,
            "format": self.config.format.value,
            "sequence_length": self.config.sequence_length,
            "lanes": self.order.shuffle.lanes,
            "window": self.order.shuffle.window,
        }


def open_stream(
    data: DataConfig, masking: MaskingConfig, seed: int, global_batch_size: int, progress: bool
) -> Stream:
    """Open the training split of `data.path`.

    Raises:
        ConfigError: not a prepared corpus, or too little of it.
        DataFault: a shard is missing or has another size.
    """
    manifest = open_manifest(open_store(data.path).child("train"))
    check_shards(manifest)
    counts = block_counts(manifest, data.format, data.sequence_length, progress)
    pack_bytes = max(1.0, float(np.mean(manifest.packs["length"])))
    in_flight = max(1, int(data.shuffle_mib * MIB / pack_bytes))
    shuffle = derive_shuffle(len(counts), global_batch_size, in_flight)
    rule = mask_rule(masking, seed, "train", manifest.vocab_size, manifest.special_tokens)
    return Stream(manifest, Order(counts, shuffle, seed), rule, data, seed, global_batch_size)


def check_lanes(stream: Stream, world: World) -> None:
    """Refuse a first launch with more ranks than lanes: ranks would read the same packs.

    Raises:
        ConfigError: lanes, ranks and what to change.
    """
    lanes = stream.order.shuffle.lanes
    if lanes < world.world_size:
        raise ConfigError(
            f"the corpus gives {lanes} lanes for {world.world_size} ranks "
            f"({len(stream.manifest.packs)} packs)",
            "prepare it with a smaller corpus.pack_mib, or start fewer ranks",
        )


class RankReader:
    """This rank's micro-batches of any global batch.

    Args:
        stream: the shared plan.
        world: which share this rank reads.
        micro_batch_size: rows in a micro-batch.
    """

    def __init__(self, stream: Stream, world: World, micro_batch_size: int) -> None:
        self.stream = stream
        self.world = world
        self.micro_batch_size = micro_batch_size
        shuffle, config = stream.order.shuffle, stream.config
        # A rank holds the windows of its lanes; two more lanes for those shared with a neighbour,
        # and half as much again while neighbouring windows overlap.
        lanes_here = -(-shuffle.lanes // world.world_size) + 2
        pack_bytes = max(1.0, float(np.mean(stream.manifest.packs["length"])))
        derived = int(lanes_here * shuffle.window * 1.5)
        capacity = int(config.cache_mib * MIB / pack_bytes) if config.cache_mib else derived
        self.cache = BlockCache(
            PackReader(stream.manifest), config.format, config.sequence_length, capacity
        )

    def micro_batches(self, first_row: int) -> list[Batch]:
        """The micro-batches of the global batch that starts at `first_row`."""
        special = self.stream.manifest.special_tokens
        mine = rank_rows(
            self.stream.order,
            first_row,
            self.stream.global_batch_size,
            self.world.rank,
            self.world.world_size,
            self.micro_batch_size,
        )
        places = zip(mine.location.pack_N, mine.location.block_N, strict=True)
        batches = []
        for row_ids_R in mine.rows:
            # Weight-0 rows come last, so the places run out exactly where they begin.
            rows = [
                weightless_row(special) if row < 0 else self._row(*next(places))
                for row in row_ids_R
            ]
            batches.append(make_batch(rows, row_ids_R, self.stream.rule))
        return batches

    def _row(self, pack: np.int64, block: np.int64) -> NDArray[np.uint16]:
        special = self.stream.manifest.special_tokens
        return block_tokens(self.cache.get(int(pack)), int(block), special)

    def close(self) -> None:
        """Close the shard files."""
        self.cache.reader.close()


class Prefetcher:
    """Reads global batches ahead in one thread; a fault surfaces where its batch is taken.

    Args:
        reader: this rank's reader.
        first_row: `next_row` of the first step.
        last_row: rows from here on are not read ahead.
    """

    def __init__(self, reader: RankReader, first_row: int, last_row: int) -> None:
        self.reader = reader
        self._next = first_row
        self._last = last_row
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._queue: deque[Future[list[Batch]]] = deque()
        self._fill()

    def _fill(self) -> None:
        depth = self.reader.stream.config.prefetch_steps
        while len(self._queue) < depth and self._next < self._last:
            self._queue.append(self._pool.submit(self.reader.micro_batches, self._next))
            self._next += self.reader.stream.global_batch_size

    def take(self) -> list[Batch]:
        """The next global batch's micro-batches of this rank, waiting if they are not read yet."""
        batches = self._queue.popleft().result()
        self._fill()
        return batches

    def close(self) -> None:
        """Stop reading ahead."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.reader.close()
