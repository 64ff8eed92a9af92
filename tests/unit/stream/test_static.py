"""Static masking: a block has so many fixed masks and pairs, taken in turn by its epochs."""

from __future__ import annotations

import numpy as np
import pytest

from roberta_dist.stream.rows import Places, static_keys

pytestmark = pytest.mark.unit


def keys(duplicates: int, epoch: int, pack: int = 3, block: int = 5, corpus: int = 1) -> list[int]:
    one = np.ones(1, dtype=np.int64)
    places = Places(corpus * one, pack * one, block * one, epoch * one)
    return static_keys(places, np.array([77, -1]), duplicates, ["a", "b"], 128).tolist()


def test_epochs_take_the_duplicates_in_turn():
    seen = [keys(3, epoch)[0] for epoch in range(9)]
    assert len(set(seen)) == 3
    assert seen[:3] == seen[3:6] == seen[6:]
    assert keys(3, 0)[1] == -1 and min(seen) >= 0


def test_blocks_packs_and_corpora_have_keys_of_their_own():
    several = {
        keys(2, 0, pack, block, corpus)[0]
        for pack in range(9)
        for block in range(9)
        for corpus in (0, 1)
    }
    assert len(several) == 162
