"""Mask law: masks are a pure function of (seed, row, position), on numpy and torch alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from roberta_dist.config.data import MaskingConfig
from roberta_dist.corpus.manifest import SpecialTokens
from roberta_dist.stream.masking import apply_mask, mask_rule
from roberta_dist.stream.masking_torch import apply_mask_torch

pytestmark = pytest.mark.unit
SPECIAL = SpecialTokens(bos=0, pad=1, eos=2, unk=3, mask=50_264)


def rule(seed: int = 1, purpose: str = "train"):
    return mask_rule(MaskingConfig(), seed, purpose, 50_265, SPECIAL)


def flat_rows(rows: int, length: int, first: int = 0):
    rng = np.random.default_rng(7)
    tokens = rng.integers(4, 50_264, size=(rows, length)).astype(np.uint16)
    tokens[:, 0], tokens[:, -1] = SPECIAL.bos, SPECIAL.eos
    row_ids = np.repeat(np.arange(first, first + rows), length)
    return tokens.reshape(-1), row_ids, np.tile(np.arange(length), rows)


def test_numpy_and_torch_agree_bit_for_bit():
    tokens, rows, positions = flat_rows(40, 512, first=2**40)
    rows[:512] = -1
    ours = apply_mask(rule(), tokens, rows, positions)
    theirs = apply_mask_torch(
        rule(), torch.from_numpy(tokens.astype(np.int64)), torch.from_numpy(rows), torch.from_numpy(positions)
    )  # fmt: skip
    for left, right in zip((ours.tokens_T, ours.index_M, ours.labels_M), theirs, strict=True):
        assert np.array_equal(left.astype(np.int64), right.numpy())
    assert not (ours.index_M < 512).any()


def test_fractions_within_three_sigma_on_a_million_tokens():
    tokens, rows, positions = flat_rows(2000, 512)
    masked = apply_mask(rule(), tokens, rows, positions)
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
    tokens, rows, positions = flat_rows(2000, 512)
    masked = apply_mask(rule(), tokens, rows, positions)
    now = masked.tokens_T[masked.index_M]
    drawn = now[(now != SPECIAL.mask) & (now != masked.labels_M)]
    assert not np.isin(drawn, [0, 1, 2, 3, 50_264]).any()
    assert drawn.min() < 100 and drawn.max() > 50_164


def test_masks_depend_on_row_and_position_alone():
    tokens, rows, positions = flat_rows(30, 128)
    whole = apply_mask(rule(), tokens, rows, positions)
    shuffled = np.random.default_rng(0).permutation(30)
    picked = (shuffled[:, None] * 128 + np.arange(128)).reshape(-1)
    moved = apply_mask(rule(), tokens[picked], rows[picked], positions[picked])
    assert np.array_equal(moved.tokens_T, whole.tokens_T[picked])


@pytest.mark.parametrize("other", [rule(seed=2), rule(purpose="held_out")])
def test_seed_and_purpose_change_the_masks(other):
    tokens, rows, positions = flat_rows(30, 128)
    left = apply_mask(rule(), tokens, rows, positions).index_M
    right = apply_mask(other, tokens, rows, positions).index_M
    assert len(np.intersect1d(left, right)) < 0.25 * len(left)


def test_specials_are_never_predicted():
    tokens, rows, positions = flat_rows(200, 64)
    masked = apply_mask(rule(), tokens, rows, positions)
    assert not np.isin(masked.labels_M, [0, 1, 2, 3, 50_264]).any()


def test_adjacent_rows_and_positions_are_not_correlated():
    tokens, rows, positions = flat_rows(2000, 512)
    chosen = np.zeros(len(tokens), dtype=float)
    chosen[apply_mask(rule(), tokens, rows, positions).index_M] = 1
    grid = chosen.reshape(2000, 512)[:, 1:-1]
    assert abs(np.corrcoef(grid[:-1].ravel(), grid[1:].ravel())[0, 1]) < 0.005
    assert abs(np.corrcoef(grid[:, :-1].ravel(), grid[:, 1:].ravel())[0, 1]) < 0.005
