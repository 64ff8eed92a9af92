"""Quarantine: which rows change their pack, to what, and that no other does."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from roberta_dist.errors import DataFault, PackFault
from roberta_dist.stream.quarantine import Entry, Quarantine

pytestmark = pytest.mark.unit

CORPORA = ("wiki", "books")
SEED = 7


def faults(*places: tuple[str, int]) -> list[PackFault]:
    return [
        PackFault(f"{corpus} pack {pack} is bad", "restore it", corpus, "shard.tar", pack, 512)
        for corpus, pack in places
    ]


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    counts = [rng.integers(1, 9, 12), rng.integers(1, 9, 5)]
    corpus_N = rng.integers(0, 2, 4000)
    pack_N = np.array([rng.integers(len(counts[c])) for c in corpus_N])
    block_N = np.array([rng.integers(counts[c][p]) for c, p in zip(corpus_N, pack_N, strict=True)])
    return counts, corpus_N, pack_N, block_N, np.arange(4000)


def applied(quarantine: Quarantine, rows):
    counts, corpus_N, pack_N, block_N, row_N = rows
    return quarantine.apply(SEED, CORPORA, counts, corpus_N, pack_N, block_N, row_N)


def test_only_the_rows_of_the_pack_move_and_only_from_its_row_on(rows):
    counts, corpus_N, pack_N, block_N, row_N = rows
    new_pack_N, new_block_N = applied(Quarantine((Entry("wiki", 3, 1000),)), rows)
    expected = (corpus_N == 0) & (pack_N == 3) & (row_N >= 1000)
    assert expected.sum() > 50
    assert np.array_equal(new_pack_N != pack_N, expected)
    assert np.array_equal(new_block_N[~expected], block_N[~expected])
    substitute = np.unique(new_pack_N[expected])
    assert len(substitute) == 1 and substitute[0] != 3
    limit = counts[0][substitute[0]]
    assert np.array_equal(new_block_N[expected], block_N[expected] % limit)


def test_weightless_rows_and_the_arguments_stay(rows):
    counts, corpus_N, pack_N, block_N, _ = rows
    row_N = np.full(4000, -1)
    before = pack_N.copy()
    new = Quarantine((Entry("wiki", 3, 0),)).apply(
        SEED, CORPORA, counts, corpus_N, pack_N, block_N, row_N
    )
    assert np.array_equal(new[0], before)
    applied(Quarantine((Entry("wiki", 3, 0),)), rows)
    assert np.array_equal(pack_N, before)


def test_a_substitute_that_fails_later_is_replaced_from_then_on(rows):
    counts, corpus_N, pack_N, _, row_N = rows
    one = Quarantine((Entry("books", 2, 500),))
    first = one.substitute(SEED, "books", 2, 500, counts[1])
    both = one.extended(faults(("books", first)), 2000, budget=2)
    old, new = applied(one, rows)[0], applied(both, rows)[0]
    changed = old != new
    assert np.array_equal(changed, (corpus_N == 1) & np.isin(pack_N, [2, first]) & (row_N >= 2000))
    assert not np.isin(new[(corpus_N == 1) & (row_N >= 2000)], [2, first]).any()


def test_all_but_one_pack_may_fail(rows):
    counts = rows[0]
    quarantine = Quarantine(tuple(Entry("books", pack, 0) for pack in (0, 1, 3, 4)))
    assert {quarantine.substitute(SEED, "books", p, 0, counts[1]) for p in (0, 1, 3, 4)} == {2}
    with pytest.raises(DataFault, match="all 5 packs are damaged"):
        quarantine.extended(faults(("books", 2)), 0, 9).substitute(SEED, "books", 1, 0, counts[1])


def test_a_pack_without_rows_is_no_substitute():
    counts = np.array([5, 0, 0, 0, 4, 0, 0, 0])
    quarantine = Quarantine((Entry("wiki", 0, 0),))
    assert quarantine.substitute(SEED, "wiki", 0, 0, counts) == 4


def test_substitutes_differ_by_seed_and_pack():
    counts = np.full(1000, 3)
    quarantine = Quarantine((Entry("wiki", 0, 0), Entry("wiki", 1, 0)))
    found = {
        quarantine.substitute(s, c, p, 0, counts) for s in (1, 2) for c in CORPORA for p in (0, 1)
    }
    assert len(found) >= 7


def test_faults_of_all_ranks_make_the_same_entries():
    places = [("wiki", 5), ("books", 1), ("wiki", 5), ("wiki", 2)]
    left = Quarantine().extended(faults(*places), 640, budget=3)
    right = Quarantine().extended(faults(*reversed(places)), 640, budget=3)
    expected = (Entry("books", 1, 640), Entry("wiki", 2, 640), Entry("wiki", 5, 640))
    assert left == right == Quarantine(expected)
    assert left.extended(faults(("wiki", 5)), 1280, budget=3) == left


def test_more_than_the_budget_stops_and_names_each():
    with pytest.raises(DataFault, match=r"2 damaged packs, data\.quarantine_packs=1") as caught:
        Quarantine().extended(faults(("wiki", 5), ("books", 1)), 0, budget=1)
    assert "wiki pack 5 is bad" in str(caught.value) and "books pack 1 is bad" in str(caught.value)
    with pytest.raises(DataFault, match=r"^wiki pack 5 is bad"):
        Quarantine().extended(faults(("wiki", 5)), 0, budget=0)


def test_it_survives_json():
    quarantine = Quarantine((Entry("books", 1, 640), Entry("wiki", 2, 10**12)))
    assert Quarantine.from_json(json.loads(json.dumps(quarantine.to_json()))) == quarantine
    assert Quarantine.from_json(None) == Quarantine()
    for damaged in ([{"corpus": "wiki"}], 5, [["wiki", 1, 2]]):
        with pytest.raises(DataFault, match="quarantine is damaged"):
            Quarantine.from_json(damaged)


def test_a_fault_survives_pickle():
    fault = faults(("wiki", 5))[0]
    again = pickle.loads(pickle.dumps(fault))
    assert (again.corpus, again.shard, again.pack, again.offset) == ("wiki", "shard.tar", 5, 512)
    assert str(again) == str(fault)
