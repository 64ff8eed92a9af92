"""Order law: the rows of a batch are a pure function of (block counts, seed, k)."""

from __future__ import annotations

import numpy as np
import pytest

from roberta_dist.errors import ConfigError
from roberta_dist.stream.order import Order, Shuffle, derive_shuffle

pytestmark = pytest.mark.unit


def some_counts(packs: int = 90, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 60, size=packs)


def one_row_at_a_time(counts, shuffle, seed, row):
    """The order of DESIGN §4 written out slowly, for one row."""
    from roberta_dist.runtime.rng import derive_key, permutation

    lane = row % shuffle.lanes
    packs = list(permutation(derive_key(seed, "deal"), len(counts)))[lane :: shuffle.lanes]
    per_epoch = sum(int(counts[p]) for p in packs)
    epoch, place = divmod(row // shuffle.lanes, per_epoch)
    packs = [packs[i] for i in permutation(derive_key(seed, "packs", lane, epoch), len(packs))]
    for window in range(0, len(packs), shuffle.window):
        blocks = [
            (int(p), b) for p in packs[window : window + shuffle.window] for b in range(counts[p])
        ]
        if place < len(blocks):
            key = derive_key(seed, "blocks", lane, epoch, window // shuffle.window)
            return blocks[permutation(key, len(blocks))[place]]
        place -= len(blocks)
    raise AssertionError("row beyond the epoch")


@pytest.mark.parametrize("shuffle", [Shuffle(1, 1), Shuffle(7, 1), Shuffle(5, 4), Shuffle(16, 3)])
def test_locate_equals_a_slow_reference(shuffle):
    counts = some_counts()
    order = Order(counts, shuffle, seed=3)
    rows = np.concatenate([np.arange(200), np.arange(90_000, 90_100)])
    found = order.locate(rows)
    for row, pack, block in zip(rows, found.pack_N, found.block_N, strict=True):
        assert (pack, block) == one_row_at_a_time(counts, shuffle, 3, int(row))


def test_an_epoch_of_a_lane_is_every_block_once():
    counts = some_counts()
    order = Order(counts, Shuffle(6, 3), seed=1)
    for lane, blocks in enumerate(order.lane_blocks):
        rows = lane + 6 * np.arange(blocks, 2 * blocks)  # the lane's second epoch
        found = order.locate(rows)
        seen = set(zip(found.pack_N.tolist(), found.block_N.tolist(), strict=True))
        assert len(seen) == blocks


def test_epochs_and_seeds_differ():
    counts = some_counts()
    order = Order(counts, Shuffle(1, 4), seed=1)
    epoch = np.arange(order.rows_per_epoch)
    first, second = order.locate(epoch), order.locate(epoch + order.rows_per_epoch)
    other = Order(counts, Shuffle(1, 4), seed=2).locate(epoch)
    assert (first.pack_N != second.pack_N).mean() > 0.5
    assert (first.pack_N != other.pack_N).mean() > 0.5


def test_order_is_the_recorded_one():
    """Guards the order itself: change PLAN_VERSION when this changes on purpose."""
    order = Order(np.arange(10) + 5, Shuffle(3, 2), seed=1)
    found = order.locate(np.arange(8))
    assert found.pack_N.tolist() == RECORDED_PACKS
    assert found.block_N.tolist() == RECORDED_BLOCKS


RECORDED_PACKS = [8, 7, 9, 8, 7, 9, 3, 7]
RECORDED_BLOCKS = [7, 9, 8, 9, 10, 12, 2, 4]


def test_derived_shuffle():
    assert derive_shuffle(packs=1, global_batch_size=8, packs_in_flight=100) == Shuffle(1, 1)
    assert derive_shuffle(packs=90, global_batch_size=64, packs_in_flight=4096) == Shuffle(45, 1)
    assert derive_shuffle(packs=100_000, global_batch_size=8192, packs_in_flight=4096) == Shuffle(
        512, 8
    )


def test_an_empty_corpus_is_refused():
    with pytest.raises(ConfigError, match="rows over"):
        Order(np.zeros(4, dtype=np.int64), Shuffle(2, 1), seed=0)
