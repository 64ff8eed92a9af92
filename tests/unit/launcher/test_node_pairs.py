from __future__ import annotations

import threading

import pytest
from test_preflight import free_port

from roberta_dist.launcher.pairs import blame, measure_pairs, rounds_of

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("count", range(9))
def test_each_node_meets_its_neighbours_one_at_a_time(count):
    nodes = [f"n{i}" for i in range(count)]
    rounds = rounds_of(nodes)
    for pairs in rounds:
        busy = [node for pair in pairs for node in pair]
        assert len(busy) == len(set(busy))
    met = sorted("".join(sorted(pair)) for pairs in rounds for pair in pairs)
    ring = {"".join(sorted((nodes[i], nodes[(i + 1) % count]))) for i in range(count)}
    assert met == (sorted(ring) if count > 1 else [])
    assert len(rounds) == {0: 0, 1: 0, 2: 1}.get(count, 2 + count % 2)


def ring(**figures: float | str | None):
    """Answers of nodes from `ab=9.0`: both say the same."""
    found: dict[str, dict[str, float | str | None]] = {}
    for (left, right), figure in figures.items():
        found.setdefault(left, {})[right] = figure
        found.setdefault(right, {})[left] = figure
    return found


def test_one_slow_node_is_named_with_its_figures():
    told = blame("abcd", ring(ab=3.0, bc=2.0, cd=900.0, da=900.0), 10)
    assert told == {"b": "all-reduce with a: 3 MiB/s; with c: 2 MiB/s; wanted 10 MiB/s"}


def test_the_first_node_can_be_the_one():
    assert blame("abc", ring(ab=3.0, bc=900.0, ca="no route"), 10) == {
        "a": "all-reduce with b: 3 MiB/s; with c: no route; wanted 10 MiB/s"
    }


def test_two_neighbours_can_be():
    assert blame("abcd", ring(ab=3.0, bc=2.0, cd=4.0, da=900.0), 10).keys() == {"b", "c"}


def test_of_two_the_first_stays():
    assert blame("ab", ring(ab=3.0), 10).keys() == {"b"}
    assert blame("ab", ring(ab=30.0), 10) == {}


def test_one_that_does_not_answer_spoils_nobody():
    found = ring(ab="no answer in time", bc="no answer in time", cd=900.0, da=900.0)
    del found["b"]
    assert blame("abcd", found, 10) == {}
    # nor a neighbour of which nothing else is known
    found = ring(ab="no answer in time", bc="no answer in time", cd=900.0, da=None)
    del found["b"]
    assert blame("abcd", found, 10) == {}
    # nor where all that is left of a node's pairs is one with it
    assert blame("ab", {"a": {"b": "no answer in time"}}, 10) == {}


def test_what_all_have_in_common_is_no_nodes_fault():
    assert (
        blame("abc", ring(ab="NCCL: no adapter", bc="NCCL: no adapter", ca="NCCL: no adapter"), 10)
        == {}
    )
    assert blame("abcd", ring(ab=3.0, bc=2.0, cd=4.0, da=1.0), 10) == {}
    assert blame("ab", ring(ab="connection refused"), 10) == {}


def test_a_port_that_others_have_is_no_fault_of_the_nodes():
    found = ring(ab=900.0, bc=900.0, ca=900.0)
    found["b"]["c"], found["c"]["b"] = None, "no answer in time"
    found["c"]["a"] = found["a"]["c"] = None
    assert blame("abc", found, 10) == {}


def test_one_side_that_failed_makes_a_bad_pair():
    found = ring(ab=900.0, bc=900.0, ca=900.0)
    found["b"]["a"] = found["b"]["c"] = "ended with -6"
    assert blame("abc", found, 10).keys() == {"b"}


def test_two_nodes_of_one_worker_measure(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    port, found = free_port(), {}

    def node(name: str) -> None:
        found[name] = measure_pairs(name, ["127.0.0.1", "b"], port, 1, 60.0)

    threads = [threading.Thread(target=node, args=(name,)) for name in ("127.0.0.1", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found["127.0.0.1"]["b"] == pytest.approx(found["b"]["127.0.0.1"], rel=0.5)
    assert found["b"]["127.0.0.1"] > 10
