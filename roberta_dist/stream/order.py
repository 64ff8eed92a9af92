"""Which block each row of a corpus is: a pure function of (seed, block counts, lanes, window, row).

Row m of a corpus belongs to lane m mod LAM and is that lane's row m div LAM (DESIGN §4). Packs are
dealt to lanes once by a seeded permutation. Within a lane epoch the lane's packs are permuted,
taken in windows of G packs, and the blocks of a window are permuted. No state, no replay: any row
is reached in closed form.

Shape legend: N rows asked for, P packs of the corpus.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roberta_dist.errors import ConfigError
from roberta_dist.runtime.rng import derive_key, permutation

PLAN_VERSION = 2
"""Changes whenever the same inputs would give another order."""


@dataclass(frozen=True)
class Shuffle:
    """How far rows are mixed: `lanes` windows of `window` packs are in flight at a time."""

    lanes: int
    window: int


def derive_shuffle(packs: int, global_batch_size: int, packs_in_flight: int) -> Shuffle:
    """Lanes and window from the corpus and the batch (DESIGN §4: only their product shuffles).

    Small corpora get windows of one pack and at least two packs a lane, so that lanes stay even;
    large ones get windows of up to eight packs, so that a batch holds few rows of one pack.
    """
    window = min(8, max(1, packs // 128))
    lanes = min(packs_in_flight // window, packs // (2 * window), global_batch_size)
    return Shuffle(lanes=max(1, lanes), window=window)


@dataclass(frozen=True)
class Location:
    """Where rows lie.

    Attributes:
        pack_N: index into the manifest's packs.
        block_N: block inside the pack.
        lane_N: lane of the row.
        epoch_N: times the lane was read before.
    """

    pack_N: NDArray[np.int64]
    block_N: NDArray[np.int64]
    lane_N: NDArray[np.int64]
    epoch_N: NDArray[np.int64]


@dataclass(frozen=True)
class _LaneEpoch:
    """One lane's packs in one epoch, with the row at which each window starts."""

    epoch: int
    packs: NDArray[np.int64]
    counts: NDArray[np.int64]
    window_starts: NDArray[np.int64]


class Order:
    """The order of all rows of one corpus in one sequence length.

    Args:
        block_counts_P: blocks of each pack in the chosen format and length.
        shuffle: lanes and window.
        seed: `train.seed`.

    Raises:
        ConfigError: no block at all, or a lane without any.
    """

    def __init__(self, block_counts_P: NDArray[np.int64], shuffle: Shuffle, seed: int) -> None:
        self.block_counts_P = np.asarray(block_counts_P, dtype=np.int64)
        self.shuffle = shuffle
        self.seed = seed
        dealt = permutation(derive_key(seed, "deal"), len(self.block_counts_P))
        self._lane_packs = [dealt[lane :: shuffle.lanes] for lane in range(shuffle.lanes)]
        self.lane_blocks = np.array(
            [self.block_counts_P[packs].sum() for packs in self._lane_packs]
        )
        if len(self.block_counts_P) == 0 or int(self.lane_blocks.min()) == 0:
            raise ConfigError(
                f"{len(self.block_counts_P)} packs give {int(self.lane_blocks.sum())} rows over "
                f"{shuffle.lanes} lanes, and a lane is empty",
                "prepare more text, or lower corpus.pack_mib or data.sequence_length",
            )
        self._epochs: dict[int, _LaneEpoch] = {}
        self._windows: OrderedDict[tuple[int, int, int], NDArray[np.int64]] = OrderedDict()

    @property
    def rows_per_epoch(self) -> int:
        """Blocks of the whole corpus; lanes end their epochs within about 1 % of each other."""
        return int(self.lane_blocks.sum())

    def locate(self, rows_N: NDArray[np.int64]) -> Location:
        """Pack, block, lane and epoch of each row of the corpus."""
        rows_N = np.asarray(rows_N, dtype=np.int64)
        lane_N = rows_N % self.shuffle.lanes
        epoch_N, place_N = np.divmod(rows_N // self.shuffle.lanes, self.lane_blocks[lane_N])
        pack_N = np.empty_like(rows_N)
        block_N = np.empty_like(rows_N)
        by_lane = np.lexsort((epoch_N, lane_N))
        change = np.flatnonzero(np.diff(lane_N[by_lane]) | np.diff(epoch_N[by_lane])) + 1
        for group in np.split(by_lane, change) if len(by_lane) else []:
            lane, epoch = int(lane_N[group[0]]), int(epoch_N[group[0]])
            pack_N[group], block_N[group] = self._locate_in_epoch(lane, epoch, place_N[group])
        return Location(pack_N, block_N, lane_N, epoch_N)

    def _locate_in_epoch(
        self, lane: int, epoch: int, places: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        plan = self._lane_epoch(lane, epoch)
        windows = np.searchsorted(plan.window_starts, places, side="right") - 1
        packs = np.empty_like(places)
        blocks = np.empty_like(places)
        for window in np.unique(windows):
            chosen = windows == window
            first = int(window) * self.shuffle.window
            counts = plan.counts[first : first + self.shuffle.window]
            shuffled = self._window_permutation(lane, epoch, int(window), int(counts.sum()))
            block_in_window = shuffled[places[chosen] - plan.window_starts[window]]
            starts = np.concatenate(([0], np.cumsum(counts)))
            pack_in_window = np.searchsorted(starts, block_in_window, side="right") - 1
            packs[chosen] = plan.packs[first + pack_in_window]
            blocks[chosen] = block_in_window - starts[pack_in_window]
        return packs, blocks

    def _lane_epoch(self, lane: int, epoch: int) -> _LaneEpoch:
        plan = self._epochs.get(lane)
        if plan is None or plan.epoch != epoch:
            packs = self._lane_packs[lane]
            packs = packs[permutation(derive_key(self.seed, "packs", lane, epoch), len(packs))]
            counts = self.block_counts_P[packs]
            ends = np.cumsum(counts)
            last_of_window = ends[self.shuffle.window - 1 :: self.shuffle.window]
            starts = np.concatenate(([0], last_of_window))
            plan = _LaneEpoch(epoch, packs, counts, starts[starts < ends[-1]])
            self._epochs[lane] = plan
        return plan

    def _window_permutation(
        self, lane: int, epoch: int, window: int, size: int
    ) -> NDArray[np.int64]:
        key = (lane, epoch, window)
        if key in self._windows:
            self._windows.move_to_end(key)
            return self._windows[key]
        shuffled = permutation(derive_key(self.seed, "blocks", lane, epoch, window), size)
        self._windows[key] = shuffled
        while len(self._windows) > 2 * self.shuffle.lanes:
            self._windows.popitem(last=False)
        return shuffled
