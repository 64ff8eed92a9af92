"""Order law over mixtures, ramps and lengths: rows are a pure function of the plan and the row."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roberta_dist.config.data import DataConfig, Phase
from roberta_dist.stream.mixture import PERIOD, make_mixture
from roberta_dist.stream.order import Order, Shuffle
from roberta_dist.stream.plan import make_plan
from roberta_dist.stream.rows import RowOrder, micro_steps, rank_rows

pytestmark = pytest.mark.unit
NAMES = {"a": "x", "b": "y", "c": "z"}
PHASES = [
    Phase(from_step=3, global_batch_size=64, ramp_steps=4),
    Phase(from_step=20, sequence_length=256, weights={"a": 1.0, "b": 0.0, "c": 2.0}),
    Phase(from_step=40, sequence_length=128, global_batch_size=48),
]
DATA = DataConfig(corpora=NAMES, sequence_length=128, phases=PHASES)
WEIGHTS = (0.5, 0.3, 0.2)


def some_order(data: DataConfig = DATA, batch: int = 16) -> RowOrder:
    orders = {
        (corpus, length): Order(
            np.random.default_rng((corpus, length)).integers(3, 40, size=50 + 10 * corpus),
            Shuffle(6 + corpus, 2),
            seed=corpus * 1000 + length,
        )
        for corpus in range(3)
        for length in (128, 256)
    }
    return RowOrder(orders, make_plan(data, batch, WEIGHTS))


def test_a_plan_is_what_one_would_write_down():
    plan = make_plan(DATA, 16, WEIGHTS)
    rows, row = {}, 0
    for step in range(60):
        size = 16 if step < 3 else min(64, 16 + 12 * (step - 2)) if step < 40 else 48
        rows[step] = (row, size, 256 if 20 <= step < 40 else 128)
        row += size
    for step, (first, size, length) in rows.items():
        assert plan.row_of_step(step) == first
        assert plan.batch_rows(first) == size
        assert plan.at(first).sequence_length == length
    # A batch that is off the grid ends where the next segment begins.
    boundary = rows[20][0]
    assert plan.batch_rows(boundary - 5) == 5


@given(st.lists(st.floats(0, 10), min_size=1, max_size=6).filter(lambda w: sum(w) > 0.01))
@settings(max_examples=60, deadline=None)
def test_mixtures_hold_their_shares_in_every_prefix(weights):
    mixture = make_mixture(weights)
    assert mixture.rates_C.sum() == PERIOD
    shares = np.array(weights) / sum(weights)
    assert np.abs(mixture.rates_C / PERIOD - shares).max() < (len(weights) + 1) / PERIOD
    seen = np.eye(len(weights))[mixture.corpus_P].cumsum(axis=0)
    wanted = np.arange(1, PERIOD + 1)[:, None] * mixture.rates_C / PERIOD
    # 1.05 for two corpora; each further one can wait for its turn.
    assert np.abs(seen - wanted).max() <= max(1.05, 0.5 * len(weights))
    for rows in (0, 1, 4095, 4096, 10_000):
        pattern = np.resize(mixture.corpus_P, rows)
        assert mixture.count(rows).tolist() == np.bincount(pattern, minlength=len(weights)).tolist()


@pytest.mark.parametrize("tiny", [[1e-9, 1e-9], [1e-9, 0.0, 1e-9, 1e-12], [1e-5] * 40])
def test_every_positive_weight_keeps_a_row(tiny):
    weights = [1.0, *tiny]
    rates = make_mixture(weights).rates_C
    assert rates.sum() == PERIOD
    assert [rate > 0 for rate in rates.tolist()] == [weight > 0 for weight in weights]


def test_every_corpus_row_is_used_once_and_in_order():
    order = some_order()
    next_of: dict[tuple[int, int], int] = {}
    row = 0
    while row < order.plan.row_of_step(60):
        index = order.plan.index_at(row)
        length = order.plan.segments[index].sequence_length
        rows = np.arange(row, row + order.plan.batch_rows(row))
        corpus_N, inside_N = order._corpus_rows(rows, index)
        for corpus, inside in zip(corpus_N.tolist(), inside_N.tolist(), strict=True):
            assert inside == next_of.get((corpus, length), 0)
            next_of[corpus, length] = inside + 1
        row += len(rows)
    # Each length has its own rows, and the corpus of weight 0 is not read at length 256.
    assert set(next_of) == {(0, 128), (1, 128), (2, 128), (0, 256), (2, 256)}


def test_shares_are_those_of_the_weights():
    order = some_order()
    first, last = order.plan.row_of_step(20), order.plan.row_of_step(40)
    corpora = order.locate(np.arange(first, last)).corpus_N
    for corpus, share in enumerate((Fraction(1, 3), Fraction(0), Fraction(2, 3))):
        assert abs(int((corpora == corpus).sum()) - share * (last - first)) <= 2


@pytest.mark.parametrize("step", [0, 3, 5, 6, 19, 20, 39, 40, 41, 5000])
def test_batches_do_not_depend_on_the_world(step):
    order = some_order()
    first = order.plan.row_of_step(step)
    rows = order.plan.batch_rows(first)
    whole = order.locate(np.arange(first, first + rows))
    expected = {
        first + i: tuple(int(column[i]) for column in vars(whole).values()) for i in range(rows)
    }
    for world in (1, 2, 3, 5, 8, 16):
        places = {}
        for rank in range(world):
            parts = rank_rows(order, first, rank, world, 7)
            assert len(parts) == micro_steps(rows, world, 7)
            for part in parts:
                real = part[part >= 0]
                assert (part[len(real) :] == -1).all()
                found = vars(order.locate(real)).values()
                where = zip(*(column.tolist() for column in found), strict=True)
                places.update(zip(real.tolist(), where, strict=True))
        assert places == expected


def test_a_rank_reads_neighbouring_lanes():
    order = some_order(DataConfig(corpora=NAMES, sequence_length=128), batch=240)
    seen = []
    for rank in range(4):
        rows = np.concatenate(rank_rows(order, 0, rank, 4, 60))
        places = order.locate(rows)
        seen.append(set(zip(places.corpus_N.tolist(), places.pack_N.tolist(), strict=True)))
    assert len(set.intersection(*seen)) == 0
    assert sum(map(len, seen)) <= len(set.union(*seen)) + 3 * 4


def test_missing_rows_become_one_weightless_row():
    order = some_order(DataConfig(corpora=NAMES, sequence_length=128), batch=7)
    parts = rank_rows(order, 0, rank=4, world_size=5, micro_batch_size=2)
    assert [part.tolist() for part in parts] == [[-1]]


def test_adding_a_phase_moves_no_row_before_it():
    longer = DataConfig(
        corpora=NAMES,
        sequence_length=128,
        phases=[*PHASES, Phase(from_step=70, sequence_length=256)],
    )
    row = make_plan(DATA, 16, WEIGHTS).row_of_step(70)
    rows = np.arange(row - 400, row - 360)
    one, two = some_order().locate(rows), some_order(longer).locate(rows)
    for ours, theirs in zip(vars(one).values(), vars(two).values(), strict=True):
        assert ours.tolist() == theirs.tolist()


def test_a_phase_at_the_first_step_takes_the_place_of_the_base():
    data = DataConfig(sequence_length=128, phases=[Phase(from_step=0, global_batch_size=9)])
    (segment,) = make_plan(data, 16, (1.0,)).segments
    assert (segment.first_row, segment.rows) == (0, 9)


def test_the_order_in_which_corpora_are_written_moves_no_row():
    turned = DataConfig(corpora={"c": "z", "a": "x", "b": "y"}, sequence_length=128, phases=PHASES)
    assert make_plan(turned, 16, WEIGHTS) == make_plan(DATA, 16, WEIGHTS)
    assert list(turned.locations.items()) == list(DATA.locations.items())


def test_a_ramp_looks_at_the_packs_once():
    asked: list[int] = []
    ramp = DataConfig(phases=[Phase(from_step=0, global_batch_size=9000, ramp_steps=5000)])
    plan = make_plan(ramp, 16, (1.0,), fill=lambda length, weights: asked.append(length) or 2.0)
    assert len(plan.segments) == 5000 and plan.segments[-1].rows == 18_000
    assert asked == [512, 512]


def test_short_rows_are_scaled():
    plan = make_plan(DATA, 16, WEIGHTS, fill=lambda length, weights: 1.5 if length == 128 else 1.25)
    assert plan.batch_rows(0) == 24
    assert plan.batch_rows(plan.row_of_step(25)) == 80
