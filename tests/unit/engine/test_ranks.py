"""Ranks are told apart by a bit of a weight, and by their own pace."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from roberta_dist.engine import ranks
from roberta_dist.engine.ranks import Ranks, slow_ranks, weights_checksum
from roberta_dist.errors import DesyncError

pytestmark = pytest.mark.unit
CPU = torch.device("cpu")


def engine(stage=1, dtype=torch.float32):
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(5, 3), nn.LayerNorm(3)).to(dtype)
    return SimpleNamespace(module=module, zero_optimization_stage=lambda: stage)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_bit_changes_the_checksum(dtype):
    one, other = engine(dtype=dtype), engine(dtype=dtype)
    assert weights_checksum(one) == weights_checksum(other) != 0
    bits = other.module[0].weight.data.view(ranks.INTEGERS[other.module[0].weight.element_size()])
    bits[1, 2] ^= 1
    assert weights_checksum(one) != weights_checksum(other)


def test_two_tensors_that_changed_places_are_seen():
    one, other = engine(), engine()
    for norm in (one.module[1], other.module[1]):
        nn.init.normal_(norm.weight)
    other.module[1].load_state_dict(one.module[1].state_dict())
    weight, bias = other.module[1].weight.data.clone(), other.module[1].bias.data.clone()
    other.module[1].weight.data, other.module[1].bias.data = bias, weight
    assert weights_checksum(one) != weights_checksum(other)
    assert weights_checksum(engine(stage=3)) == 0  # no rank holds all of it


def test_the_rank_that_differs_is_named(monkeypatch):
    watch = Ranks(engine(), CPU, timed=False)
    watch.check_in_step(7)
    monkeypatch.setattr(ranks, "gather_everywhere", lambda own: [own, own, own + 1, own])
    with pytest.raises(
        DesyncError, match=r"step 7: the ranks' weights differ .*: rank 2"
    ) as raised:
        watch.check_in_step(7)
    assert raised.value.exit_code == 4


def test_a_slow_rank_is_one_beyond_the_median(monkeypatch):
    assert slow_ranks([1.0, 1.1, 1.6, 0.9], 1.5) == [(2, 1.6)]
    assert slow_ranks([1.0, 1.4], 1.5) == []
    assert slow_ranks([2.0], 1.5) == slow_ranks([0.0, 0.0], 1.5) == []
    clock = iter([0.0, 3.0, 10.0, 12.0])
    monkeypatch.setattr(ranks.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(ranks, "gather_everywhere", lambda own: [1.0, own, 1.0])
    watch = Ranks(engine(), CPU, timed=True)
    for _ in range(2):
        with watch.forward():
            pass
    assert watch.slow(1.5) == [(1, 5.0)]
    assert watch.slow(1.5) == []
