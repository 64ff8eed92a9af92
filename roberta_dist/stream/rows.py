"""From global rows to corpora, packs and blocks, and each rank's share of a batch.

Global row n lies in a segment of the plan; the segment's mixture says which corpus it is and which
row of that corpus (DESIGN §4). A corpus goes on where it was when a segment ends; a new sequence
length begins a new order of its own.

Shape legend: N rows asked for, C corpora, P rows of a mixture's period.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roberta_dist.runtime.rng import counter_bits, derive_key
from roberta_dist.stream.mixture import PERIOD, Mixture, make_mixture
from roberta_dist.stream.order import Order
from roberta_dist.stream.plan import Plan, Weights

BLOCK_BITS = 24
"""Blocks of a pack are numbered below 2²⁴."""


@dataclass(frozen=True)
class Places:
    """Where global rows lie; all int64 [N].

    Attributes:
        corpus_N: number of the corpus.
        pack_N: index into that corpus's packs.
        block_N: block inside the pack.
        epoch_N: times the row's lane was read before.
    """

    corpus_N: NDArray[np.int64]
    pack_N: NDArray[np.int64]
    block_N: NDArray[np.int64]
    epoch_N: NDArray[np.int64]

    def split(self, ends: NDArray[np.int64]) -> list[Places]:
        """The places cut at `ends`."""
        columns = (np.split(column, ends) for column in vars(self).values())
        return [Places(*part) for part in zip(*columns, strict=True)]


class RowOrder:
    """The order of all rows of a run.

    Args:
        orders: (corpus, sequence length) → order of that corpus's rows.
        plan: the segments.
    """

    def __init__(self, orders: Mapping[tuple[int, int], Order], plan: Plan) -> None:
        self.orders = orders
        self.plan = plan
        corpora = len(plan.segments[0].weights)
        self._mixtures: dict[Weights, Mixture] = {}
        self._bases: list[NDArray[np.int64]] = []  # rows of each corpus before the segment, [C]
        read: dict[int, NDArray[np.int64]] = {}  # by sequence length
        for segment, after in zip(plan.segments, [*plan.segments[1:], None], strict=True):
            if segment.weights not in self._mixtures:
                self._mixtures[segment.weights] = make_mixture(list(segment.weights))
            base = read.get(segment.sequence_length, np.zeros(corpora, dtype=np.int64))
            self._bases.append(base)
            if after is not None:
                rows = after.first_row - segment.first_row
                read[segment.sequence_length] = base + self._mixtures[segment.weights].count(rows)

    def _corpus_rows(
        self, rows_N: NDArray[np.int64], index: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Corpus of each row of segment `index`, and its row inside that corpus."""
        segment = self.plan.segments[index]
        mixture = self._mixtures[segment.weights]
        period_N, slot_N = np.divmod(rows_N - segment.first_row, PERIOD)
        corpus_N = mixture.corpus_P[slot_N]
        inside_N = period_N * mixture.rates_C[corpus_N] + mixture.place_P[slot_N]
        return corpus_N, self._bases[index][corpus_N] + inside_N

    def epochs(self, row: int) -> float:
        """How often the rows before `row` read the corpora, averaged by their sizes."""
        index = self.plan.index_at(row)
        segment = self.plan.segments[index]
        read = self._bases[index] + self._mixtures[segment.weights].count(row - segment.first_row)
        sizes = [
            self.orders[corpus, segment.sequence_length].rows_per_epoch
            for corpus in range(len(read))
            if (corpus, segment.sequence_length) in self.orders
        ]
        return float(read.sum()) / sum(sizes)

    def locate(self, rows_N: NDArray[np.int64]) -> Places:
        """Corpus, pack, block and epoch of global rows of one segment."""
        rows_N = np.asarray(rows_N, dtype=np.int64)
        places = Places(*(np.zeros_like(rows_N) for _ in range(4)))
        if not len(rows_N):
            return places
        index = self.plan.index_at(int(rows_N[0]))
        length = self.plan.segments[index].sequence_length
        corpus_N, inside_N = self._corpus_rows(rows_N, index)
        places.corpus_N[:] = corpus_N
        for corpus in np.unique(corpus_N):
            chosen = corpus_N == corpus
            found = self.orders[int(corpus), length].locate(inside_N[chosen])
            places.pack_N[chosen] = found.pack_N
            places.block_N[chosen] = found.block_N
            places.epoch_N[chosen] = found.epoch_N
        return places

    def by_lane(self, first_row: int, rows: int) -> NDArray[np.int64]:
        """The rows of a batch sorted by corpus and lane, so that neighbours read the same packs."""
        rows_N = np.arange(first_row, first_row + rows, dtype=np.int64)
        index = self.plan.index_at(first_row)
        length = self.plan.segments[index].sequence_length
        corpus_N, inside_N = self._corpus_rows(rows_N, index)
        lanes_C = np.array(
            [
                order.shuffle.lanes if (order := self.orders.get((corpus, length))) else 1
                for corpus in range(len(self._bases[index]))
            ]
        )
        return rows_N[np.lexsort((inside_N % lanes_C[corpus_N], corpus_N))]


def micro_steps(batch_rows: int, world_size: int, micro_batch_size: int) -> int:
    """Micro-batches every rank runs in a step: the same number on all of them."""
    rows_per_rank = -(-batch_rows // world_size)
    return -(-rows_per_rank // micro_batch_size)


def rank_rows(
    order: RowOrder, first_row: int, rank: int, world_size: int, micro_batch_size: int
) -> list[NDArray[np.int64]]:
    """Rows of the batch at `first_row` that `rank` computes, cut into micro-batches.

    Rows are sorted by corpus and lane and cut into `world_size` parts of ceil(rows / world_size), so a
    lane's packs are read by one rank, or two. The set over all ranks does not depend on the world.

    Returns:
        Global row ids [micro_steps][rows]; -1 is a weight-0 row, after all real ones.
    """
    rows = order.plan.batch_rows(first_row)
    per_rank = -(-rows // world_size)
    mine = order.by_lane(first_row, rows)[rank * per_rank : (rank + 1) * per_rank]
    steps = micro_steps(rows, world_size, micro_batch_size)
    padded = np.full(steps * micro_batch_size, -1, dtype=np.int64)
    padded[: len(mine)] = mine
    parts: Sequence[NDArray[np.int64]] = list(padded.reshape(steps, micro_batch_size))
    # A last micro-batch may be mostly weight-0 rows; drop those beyond the first, which keeps it valid.
    return [part[: max(1, int((part >= 0).sum()))] for part in parts]


def static_keys(
    places: Places,
    row_ids_R: NDArray[np.int64],
    duplicates: int,
    corpora: Sequence[str],
    length: int,
) -> NDArray[np.int64]:
    """What masks and pairs are drawn by where they are static: the block, and which of its duplicates.

    A block has `duplicates` of them (BERT: 10), taken in turn by the epochs of its lane.

    Args:
        places: of the real rows; weight-0 rows come after them.
        row_ids_R: global ids; negative ones stay.
        duplicates: of each block.
        corpora: names.
        length: of the rows.
    """
    keys_R = row_ids_R.copy()
    block_N = (places.pack_N << BLOCK_BITS) + places.block_N
    counter_N = block_N * duplicates + places.epoch_N % duplicates
    for number, name in enumerate(corpora):
        chosen = np.flatnonzero(places.corpus_N == number)
        bits = counter_bits(derive_key("static", name, length), counter_N[chosen])
        keys_R[chosen] = bits >> np.uint64(3)  # room for the draws of a pair
    return keys_R
