"""From (corpora, seed, next_row) to this rank's micro-batches, read ahead by one thread."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from roberta_dist.runtime.rng import derive_key
from roberta_dist.runtime.world import World
from roberta_dist.stream.batch import Batch, make_batch
from roberta_dist.stream.blocks import RowMaker
from roberta_dist.stream.open import Stream
from roberta_dist.stream.packs import PackReader
from roberta_dist.stream.quarantine import NOTHING_OUT, Quarantine
from roberta_dist.stream.rows import Places, micro_steps, rank_rows, static_keys
from roberta_dist.units import MIB


def micro_batch_rows(stream: Stream, micro_batch_size: int, sequence_length: int) -> int:
    """Rows of a micro-batch: `micro_batch_size` of `data.sequence_length`, or as many tokens."""
    return max(1, micro_batch_size * stream.config.sequence_length // sequence_length)


def most_micro_steps(stream: Stream, world: World, micro_batch_size: int) -> int:
    """The most micro-batches that a step of the run takes."""
    return max(
        micro_steps(
            segment.rows,
            world.world_size,
            micro_batch_rows(stream, micro_batch_size, segment.sequence_length),
        )
        for segment in stream.plan.segments
    )


def packs_held(stream: Stream, world: World) -> int:
    """Packs that a rank's reader keeps decoded: the windows of its lanes of each corpus.

    Two more lanes for those shared with a neighbour, and half as much again while neighbouring
    windows overlap.
    """
    if stream.config.cache_mib:
        return int(stream.config.cache_mib * MIB / max(1.0, _pack_bytes(stream)))
    windows = sum(
        (-(-corpus.shuffle.lanes // world.world_size) + 2) * corpus.shuffle.window
        for corpus in stream.corpora
    )
    return int(windows * 1.5)


def reader_bytes(stream: Stream, world: World) -> int:
    """Bytes of the packs that a rank's reader comes to hold."""
    packs = sum(len(corpus.manifest.packs) for corpus in stream.corpora)
    return int(min(packs, packs_held(stream, world)) * _pack_bytes(stream))


def _pack_bytes(stream: Stream) -> float:
    means = [float(np.mean(corpus.manifest.packs["length"])) for corpus in stream.corpora]
    return float(np.mean(means))


class RankReader:
    """This rank's micro-batches of any global batch.

    Args:
        stream: the shared plan.
        world: which share this rank reads.
        micro_batch_size: rows of `data.sequence_length` in a micro-batch.
        quarantine: packs that others stand in for.
    """

    def __init__(
        self,
        stream: Stream,
        world: World,
        micro_batch_size: int,
        quarantine: Quarantine = NOTHING_OUT,
    ) -> None:
        self.stream = stream
        self.quarantine = quarantine
        self.world = world
        self.micro_batch_size = micro_batch_size
        self.maker = RowMaker(
            [PackReader(corpus.manifest, corpus.name) for corpus in stream.corpora],
            stream.config.format,
            derive_key(stream.seed, "train"),
            packs_held(stream, world),
        )

    def micro_batches(self, first_row: int) -> list[Batch]:
        """The micro-batches of the global batch that starts at `first_row`.

        Raises:
            DataFault: a pack cannot be read or is damaged.
        """
        length = self.stream.plan.at(first_row).sequence_length
        size = micro_batch_rows(self.stream, self.micro_batch_size, length)
        world = self.world
        parts = rank_rows(self.stream.order, first_row, world.rank, world.world_size, size)
        real = [int((row_ids_R >= 0).sum()) for row_ids_R in parts]
        ends = np.cumsum(real)[:-1]
        rows_N = np.concatenate([part[:count] for part, count in zip(parts, real, strict=True)])
        places = self._places(rows_N, length).split(ends)
        # Entries begin with a batch, so all of its rows see the same packs.
        self.maker.leave_out = self.quarantine.packs_out(first_row)
        return [
            self._batch(row_ids_R, places_R, length)
            for row_ids_R, places_R in zip(parts, places, strict=True)
        ]

    def _places(self, rows_N: NDArray[np.int64], length: int) -> Places:
        """Where rows lie, substitutes in the place of packs that are out."""
        stream = self.stream
        places = stream.order.locate(rows_N)
        if not self.quarantine.entries:
            return places
        nothing = np.zeros(0, dtype=np.int64)
        orders = [stream.order.orders.get((c, length)) for c in range(len(stream.corpora))]
        pack_N, block_N = self.quarantine.apply(
            stream.seed,
            [corpus.name for corpus in stream.corpora],
            [order.block_counts_P if order else nothing for order in orders],
            places.corpus_N,
            places.pack_N,
            places.block_N,
            rows_N,
        )
        return replace(places, pack_N=pack_N, block_N=block_N)

    def _batch(self, row_ids_R: NDArray[np.int64], places: Places, length: int) -> Batch:
        keys_R = row_ids_R
        if self.stream.static_duplicates:
            names = [corpus.name for corpus in self.stream.corpora]
            keys_R = static_keys(places, row_ids_R, self.stream.static_duplicates, names, length)
        rows, labels_R = self.maker.make(places, keys_R, length)
        return make_batch(rows, row_ids_R, self.stream.rule, keys_R, labels_R)

    def close(self) -> None:
        """End the reading threads."""
        self.maker.close()


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
        stream = self.reader.stream
        while len(self._queue) < stream.config.prefetch_steps and self._next < self._last:
            self._queue.append(self._pool.submit(self.reader.micro_batches, self._next))
            self._next += stream.plan.batch_rows(self._next)

    def take(self) -> list[Batch]:
        """The next global batch's micro-batches of this rank, waiting if they are not read yet.

        Raises:
            DataFault: a pack of it cannot be read or is damaged.
        """
        batches = self._queue.popleft().result()
        self._fill()
        return batches

    def close(self) -> None:
        """Stop reading ahead."""
        self._pool.shutdown(wait=True, cancel_futures=True)
