"""The search for the largest micro-batch, on made-up memories."""

from __future__ import annotations

import pytest

from roberta_dist.config.train import TrainConfig
from roberta_dist.errors import ConfigError
from roberta_dist.train.micro_batch import Search, even_size, micro_steps_of
from roberta_dist.units import MIB

pytestmark = pytest.mark.unit
HELD = 400 * MIB


def search(peak, budget_mib, rows_per_rank):
    """Found, and the sizes in the order of their trials."""
    tried = []

    def measure(rows):
        tried.append(rows)
        return peak(rows)

    return Search(measure, HELD, budget_mib * MIB, "as told", rows_per_rank).run(), tried


def linear(rows):
    return HELD + (100 + 7 * rows) * MIB


def with_buffers(rows):
    """The reduction's buffers of 64 MiB hide the first rows' activations."""
    return HELD + (100 + max(64, 7 * rows)) * MIB


@pytest.mark.parametrize("rows_per_rank", [1, 2, 3, 31, 64, 1000])
@pytest.mark.parametrize("room_mib", [0, 7, 49, 113, 266, 9000])
@pytest.mark.parametrize(("peak", "hidden"), [(linear, 0), (with_buffers, 64)])
def test_the_most_that_fits_is_found_and_little_more_is_ever_tried(
    peak, hidden, room_mib, rows_per_rank
):
    budget_mib = peak(1) // MIB + room_mib
    found, tried = search(peak, budget_mib, rows_per_rank)
    most = max(n for n in range(1, rows_per_rank + 1) if peak(n) <= budget_mib * MIB)
    assert found.rows == even_size(rows_per_rank, most)
    assert found.peaks[found.rows] == peak(found.rows) <= budget_mib * MIB
    assert max(peak(rows) for rows in tried) <= (budget_mib + hidden) * MIB
    assert len(tried) == len(set(tried)) <= 3 + 2 * rows_per_rank.bit_length()
    assert max(tried) <= rows_per_rank


def test_sizes_are_doubled_then_halved_between():
    found, tried = search(linear, 601, 1024)  # 14 fit; 74 micro-batches of 14 hold 1024 rows
    assert tried == [0, 1, 2, 4, 8, 12, 14]
    assert found.rows == 14
    assert search(linear, 10_000, 100)[1] == [0, 1, 2, 4, 8, 16, 32, 64, 100]


def test_bisection_ends_where_more_rows_save_no_micro_batch():
    found, tried = search(linear, 900, 100)  # 57 fit, and 2 micro-batches of 50 do as well
    assert found.rows == 50
    assert tried == [0, 1, 2, 4, 8, 16, 32, 48, 56, 50]


@pytest.mark.parametrize(
    ("rows_per_rank", "most", "size"),
    [(100, 48, 34), (100, 100, 100), (100, 99, 50), (7, 5, 4), (1, 1, 1), (4096, 1000, 820)],
)
def test_of_equal_numbers_of_micro_batches_the_fewest_empty_rows(rows_per_rank, most, size):
    assert even_size(rows_per_rank, most) == size
    steps = micro_steps_of(rows_per_rank, most)
    assert micro_steps_of(rows_per_rank, size) == steps
    assert size == 1 or micro_steps_of(rows_per_rank, size - 1) > steps


def test_a_size_that_misses_by_noise_is_followed_by_a_smaller_one():
    found, _ = search(lambda rows: linear(rows) + (MIB if rows == 14 else 0), 598, 1024)
    assert found.rows == 13


@pytest.mark.parametrize(
    ("budget_mib", "told"),
    [
        (507, ["400 MiB with weights", "500 MiB with the gradients", "508 MiB with one row"]),
        (499, ["400 MiB with weights", "500 MiB with the gradients", "one row was not tried"]),
        (399, ["400 MiB with weights", "one row was not tried"]),
    ],
)
def test_a_model_too_large_is_refused_with_the_numbers(budget_mib, told):
    def peak(rows):
        return linear(rows) + (MIB if rows else 0)

    with pytest.raises(ConfigError) as refused:
        search(peak, budget_mib, 8)
    problem = refused.value.problem
    assert not [
        part for part in [*told, f"may take {budget_mib} MiB", "as told"] if part not in problem
    ]
    for way in ("engine.stage", "more ranks", "offload", "sequence_length", "memory_budget_mib"):
        assert way in refused.value.remedy


@pytest.mark.parametrize("size", [0, -1, "16", "many", ""])
def test_a_size_is_a_positive_number_or_auto(size):
    with pytest.raises(ConfigError, match=r"train\.micro_batch_size=.*whole number, or auto"):
        TrainConfig(micro_batch_size=size)


def test_what_deepspeed_is_told_before_the_size_is_found():
    assert TrainConfig(micro_batch_size="auto").least_micro_batch_size == 1
    assert TrainConfig(micro_batch_size=16).least_micro_batch_size == 16
