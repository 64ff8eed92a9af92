"""Mask law: masks are a pure function of (seed, row, position), on numpy and torch alike."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from roberta_dist.config.data import MaskingConfig
from roberta_dist.corpus.manifest import SpecialTokens
from roberta_dist.runtime.rng import GOLDEN, counter_bits, mix64
from roberta_dist.stream.masking import apply_mask, mask_rule
from roberta_dist.stream.masking_torch import apply_mask_torch

pytestmark = pytest.mark.unit
SPECIAL = SpecialTokens(bos=0, pad=1, eos=2, unk=3, mask=50_264)


def rule(seed: int = 1, purpose: str = "train"):
    return mask_rule(MaskingConfig(), seed, purpose, 50_265, SPECIAL)


def flat_rows(rows: int, length: int, first: int = 0):
    """Tokens, row starts, mask rows."""
    rng = np.random.default_rng(7)
    tokens = rng.integers(4, 50_264, size=(rows, length)).astype(np.uint16)
    tokens[:, 0], tokens[:, -1] = SPECIAL.bos, SPECIAL.eos
    starts = np.arange(rows + 1) * length
    return tokens.reshape(-1), starts, np.arange(first, first + rows)


def ragged_rows(rows: int):
    """Rows of 2 to 400 tokens, some of them without weight."""
    rng = np.random.default_rng(11)
    starts = np.concatenate(([0], np.cumsum(rng.integers(2, 400, size=rows))))
    tokens = rng.integers(4, 50_264, size=starts[-1]).astype(np.uint16)
    tokens[starts[:-1]], tokens[starts[1:] - 1] = SPECIAL.bos, SPECIAL.eos
    tokens[rng.random(len(tokens)) < 0.01] = SPECIAL.pad
    return tokens, starts, np.where(np.arange(rows) % 7, 10**15 * np.arange(rows), -1)


def test_masks_are_those_of_every_version():
    """Recorded from version 0.1, whose runs must resume with the same masks."""
    tokens, starts, rows = ragged_rows(100)
    masked = apply_mask(rule(), tokens, starts, rows)
    recorded = hashlib.sha256()
    for values in (masked.tokens_T, masked.index_M, masked.labels_M):
        recorded.update(values.astype("<i8").tobytes())
    assert recorded.hexdigest() == (
        "6a0c2aa13f4a93e281e459fc65f1087b2b9a7b3dc6baab73f20cbd713d6e9949"
    )


@pytest.mark.parametrize("probability", [0.15, 0.1000000001, 0.7, 1 - 1e-12])
def test_numpy_and_torch_agree_bit_for_bit(probability):
    rule = mask_rule(MaskingConfig(probability=probability), 1, "train", 50_265, SPECIAL)
    tokens, starts, rows = ragged_rows(120)
    ours = apply_mask(rule, tokens, starts, rows)
    theirs = apply_mask_torch(
        rule, *(torch.from_numpy(values.astype(np.int64)) for values in (tokens, starts, rows))
    )
    for left, right in zip((ours.tokens_T, ours.index_M, ours.labels_M), theirs, strict=True):
        assert np.array_equal(left.astype(np.int64), right.numpy())
    weightless = np.searchsorted(starts, ours.index_M, side="right") - 1
    assert (rows[weightless] >= 0).all()


def test_an_odd_threshold_is_met_to_the_last_bit():
    """The fast path decides on 31 bits; here is a row and position where the 32nd decides."""
    tokens, starts, rows = flat_rows(1000, 128)
    bits = mix64(
        counter_bits(rule().key, rows)[:, None]
        + (np.arange(128, dtype=np.uint64) + np.uint64(1)) * np.uint64(GOLDEN)
    ).reshape(-1) >> np.uint64(32)
    ordinary = ~np.isin(tokens, [SPECIAL.bos, SPECIAL.eos])
    in_order = np.sort(bits[ordinary])
    even, odd = in_order[in_order % 2 == 0], in_order[in_order % 2 == 1]
    for seen in (int(even[100]), int(odd[100]), int(even[40_000]), int(odd[40_000])):
        for below in (seen - 1, seen, seen + 1, seen + 2):
            exact = replace(rule(), select_below=below)
            index = apply_mask(exact, tokens, starts, rows).index_M
            assert np.array_equal(index, np.flatnonzero(ordinary & (bits < below)))


def test_fractions_within_three_sigma_on_a_million_tokens():
    tokens, starts, rows = flat_rows(2000, 512)
    masked = apply_mask(rule(), tokens, starts, rows)
    ordinary = 2000 * 510
    chosen = len(masked.index_M)

    def close(count: int, trials: int, probability: float) -> None:
        sigma = (trials * probability * (1 - probability)) ** 0.5
        assert abs(count - trials * probability) < 3 * sigma, count / trials

    close(chosen, ordinary, 0.15)
    now = masked.tokens_T[masked.index_M]
    close(int((now == SPECIAL.mask).sum()), chosen, 0.8)
    close(int(((now != SPECIAL.mask) & (now != masked.labels_M)).sum()), chosen, 0.1)
    close(int((now == masked.labels_M).sum()), chosen, 0.1)


def test_random_tokens_are_ordinary_and_spread():
    tokens, starts, rows = flat_rows(2000, 512)
    masked = apply_mask(rule(), tokens, starts, rows)
    now = masked.tokens_T[masked.index_M]
    drawn = now[(now != SPECIAL.mask) & (now != masked.labels_M)]
    assert not np.isin(drawn, [0, 1, 2, 3, 50_264]).any()
    assert drawn.min() < 100 and drawn.max() > 50_164


def test_masks_depend_on_row_and_position_alone():
    tokens, starts, rows = flat_rows(30, 128)
    whole = apply_mask(rule(), tokens, starts, rows)
    shuffled = np.random.default_rng(0).permutation(30)
    picked = (shuffled[:, None] * 128 + np.arange(128)).reshape(-1)
    moved = apply_mask(rule(), tokens[picked], starts, rows[shuffled])
    assert np.array_equal(moved.tokens_T, whole.tokens_T[picked])


@pytest.mark.parametrize("other", [rule(seed=2), rule(purpose="held_out")])
def test_seed_and_purpose_change_the_masks(other):
    tokens, starts, rows = flat_rows(30, 128)
    left = apply_mask(rule(), tokens, starts, rows).index_M
    right = apply_mask(other, tokens, starts, rows).index_M
    assert len(np.intersect1d(left, right)) < 0.25 * len(left)


def test_specials_are_never_predicted():
    tokens, starts, rows = flat_rows(200, 64)
    masked = apply_mask(rule(), tokens, starts, rows)
    assert not np.isin(masked.labels_M, [0, 1, 2, 3, 50_264]).any()


def test_adjacent_rows_and_positions_are_not_correlated():
    tokens, starts, rows = flat_rows(2000, 512)
    chosen = np.zeros(len(tokens), dtype=float)
    chosen[apply_mask(rule(), tokens, starts, rows).index_M] = 1
    grid = chosen.reshape(2000, 512)[:, 1:-1]
    assert abs(np.corrcoef(grid[:-1].ravel(), grid[1:].ravel())[0, 1]) < 0.005
    assert abs(np.corrcoef(grid[:, :-1].ravel(), grid[:, 1:].ravel())[0, 1]) < 0.005
