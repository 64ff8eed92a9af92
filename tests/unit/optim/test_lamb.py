"""LAMB against its formula, whole and cut over ranks, block by block and compiled."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from roberta_dist.optim import lamb as module
from roberta_dist.optim.lamb import Lamb, Segment
from roberta_dist.optim.lamb_arithmetic import BLOCK

pytestmark = pytest.mark.unit

LR, BETAS, EPS, DECAY, STEPS = 0.1, (0.9, 0.98), 1e-6, 0.05, 5
SHAPES = ((5, 7), (12,), (10, 5))


def make_tensors(shapes=SHAPES, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def gradient(step, index, shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(100 * step + index)
    return torch.randn(shape, generator=generator, dtype=dtype) * 10.0 ** (index - 1)


def formula(weights, gradients, decays, correct=True, clip=None, nvlamb=False, scale=1.0):
    """Weights and moments after these gradients (a list a step), from the paper, plain."""
    weights = [w.clone() for w in weights]
    moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in weights]
    for t, at_step in enumerate(gradients, 1):
        for w, (m, v), g, decay in zip(weights, moments, at_step, decays, strict=True):
            g = g * scale
            m.copy_(BETAS[0] * m + (1 - BETAS[0]) * g)
            v.copy_(BETAS[1] * v + (1 - BETAS[1]) * g * g)
            m_hat = m / (1 - BETAS[0] ** t) if correct else m
            v_hat = v / (1 - BETAS[1] ** t) if correct else v
            u = m_hat / (v_hat.sqrt() + EPS) + decay * w
            ratio = 1.0
            if (decay or nvlamb) and w.norm() > 0 and u.norm() > 0:
                ratio = float(w.norm() / u.norm())
                ratio = min(max(ratio, clip[0]), clip[1]) if clip else ratio
            w -= LR * ratio * u
    return weights, moments


def make_lamb(groups, **options):
    return Lamb(groups, lr=LR, betas=BETAS, eps=EPS, **options)


def train(optimizer, parameters, gradients):
    for at_step in gradients:
        for parameter, g in zip(parameters, at_step, strict=True):
            parameter.grad = g.clone().to(parameter.dtype)
        optimizer.step()


def all_gradients(shapes=SHAPES):
    return [[gradient(t, i, s) for i, s in enumerate(shapes)] for t in range(STEPS)]


def relative(found, expected):
    return float((found.double() - expected).norm() / expected.norm().clamp_min(1e-30))


def run(weights, gradients, decays, options, dtype=torch.float64):
    """Our weights and optimizer; a group a tensor."""
    parameters = [torch.nn.Parameter(w.clone().to(dtype)) for w in weights]
    scale = options.pop("scale", 1.0)
    optimizer = make_lamb(
        [{"params": [p], "weight_decay": d} for p, d in zip(parameters, decays, strict=True)],
        **options,
    )
    optimizer.gradient_scale = scale
    train(optimizer, parameters, gradients)
    return parameters, optimizer


@pytest.mark.parametrize("small", [0, module.SMALL], ids=["one-by-one", "together"])
@pytest.mark.parametrize(
    ("options", "decays"),
    [
        ({}, (DECAY, 0.0, DECAY)),
        ({"bias_correction": False}, (DECAY, 0.0, DECAY)),
        ({"trust_clip": (0.5, 0.9)}, (DECAY, 0.0, DECAY)),
        ({"nvlamb": True}, (DECAY, 0.0, 0.0)),
        ({"nvlamb": True, "trust_clip": (0.01, 0.02)}, (0.0, 0.0, 0.0)),
        ({"scale": 1e-3}, (DECAY, 0.0, DECAY)),
        ({}, (0.0, 0.0, 0.0)),
    ],
    ids=["plain", "uncorrected", "clip", "nvlamb", "nvlamb-clip", "scaled", "adam"],
)
def test_is_the_formula(monkeypatch, options, decays, small):
    monkeypatch.setattr(module, "SMALL", small)
    weights, gradients = make_tensors(), all_gradients()
    names = {"bias_correction": "correct", "trust_clip": "clip"}
    settings = {names.get(key, key): value for key, value in options.items()}
    expected, moments = formula(weights, gradients, decays, **settings)
    found, optimizer = run(weights, gradients, decays, dict(options))
    for parameter, weight, (m, v) in zip(found, expected, moments, strict=True):
        state = optimizer.state[parameter]
        assert relative(parameter.detach(), weight) <= 1e-12
        assert relative(state["exp_avg"], m) <= 1e-12
        assert relative(state["exp_avg_sq"], v) <= 1e-12
        assert state["step"].item() == STEPS
        assert set(state) == {"step", "exp_avg", "exp_avg_sq"}
    single, _ = run(weights, gradients, decays, dict(options), torch.float32)
    for parameter, weight in zip(single, expected, strict=True):
        assert relative(parameter.detach(), weight) <= 1e-6


def test_a_tensor_of_zeros_takes_the_plain_step():
    """Zero weight or zero update: ratio 1, as in apex; nothing is divided by 0."""
    weights = [torch.zeros(4, 3).double(), torch.ones(4, 3).double(), torch.zeros(3).double()]
    gradients = [[torch.ones(4, 3), torch.zeros(4, 3), torch.zeros(3)] for _ in range(STEPS)]
    gradients = [[g.double() for g in at_step] for at_step in gradients]
    decays = (DECAY, DECAY, DECAY)
    for clip in (None, (2.0, 3.0)):
        expected, _ = formula(weights, gradients, decays, clip=clip)
        found, optimizer = run(weights, gradients, decays, {"trust_clip": clip})
        for parameter, weight in zip(found, expected, strict=True):
            assert parameter.isfinite().all()
            assert relative(parameter.detach(), weight) <= 1e-12
        assert 2 not in optimizer.trust_ratios  # no weight, no ratio to show
    assert not found[2].any()


def test_a_tensor_without_gradient_is_left_alone():
    kept, moved = (torch.nn.Parameter(torch.ones(3, 2)) for _ in range(2))
    optimizer = make_lamb([kept, moved])
    moved.grad = torch.ones(3, 2)
    optimizer.step()
    assert torch.equal(kept.detach(), torch.ones(3, 2)) and not optimizer.state[kept]
    assert not torch.equal(moved.detach(), torch.ones(3, 2))


def test_trust_ratios_are_reported_by_tensor():
    weights, gradients = make_tensors(), all_gradients()[:1]
    _, optimizer = run(weights, gradients, (DECAY, DECAY, DECAY), {})
    for index, (w, g) in enumerate(zip(weights, gradients[0], strict=True)):
        u = g / (g.abs() + EPS) + DECAY * w
        expected = float(w.norm() / u.norm())
        found = optimizer.trust_ratios.get(index)
        assert found is not None and math.isclose(found, expected, rel_tol=1e-12), index


PADDING = (3, 0, 5, 4)
"""Elements before, between and behind the tensors in the flat buffer."""


def flatten(tensors, fill):
    pads = [torch.full((n,), fill, dtype=tensors[0].dtype) for n in PADDING]
    parts = [pads[0]]
    for tensor, pad in zip(tensors, pads[1:], strict=True):
        parts += [tensor.reshape(-1), pad]
    return torch.cat(parts)


def places():
    """(tensor, first element, one past the last) in the flat buffer."""
    result, at = [], PADDING[0]
    for index, shape in enumerate(SHAPES):
        result.append((index, at, at + math.prod(shape)))
        at += math.prod(shape) + PADDING[index + 1]
    return result


class Meeting:
    """Sum over simulated ranks: each runs in a thread and waits for the others."""

    def __init__(self, ranks):
        self.barrier = threading.Barrier(ranks, timeout=60)
        self.slots = [None] * ranks

    def all_sum(self, rank):
        def total(norms):
            self.slots[rank] = norms
            self.barrier.wait()
            result = torch.stack(self.slots).sum(0)
            self.barrier.wait()
            return result

        return total


@pytest.mark.parametrize("options", [{}, {"nvlamb": True}, {"trust_clip": (0.5, 0.9)}], ids=str)
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_flat_tensors_cut_over_ranks_equal_whole_ones(ranks, options):
    weights, gradients = make_tensors(), all_gradients()
    decay = 0.0 if options.get("nvlamb") else DECAY
    expected, _ = run(weights, gradients, (decay,) * 3, dict(options))
    flat = flatten(weights, fill=7.0)
    share = -(-len(flat) // ranks)
    flat_gradients = [flatten(at_step, fill=0.0) for at_step in gradients]
    meeting = Meeting(ranks)

    def one_rank(rank):
        begin, end = rank * share, min((rank + 1) * share, len(flat))
        own = torch.nn.Parameter(flat[begin:end].clone())
        segments = [
            Segment(index, max(first, begin) - begin, min(last, end) - max(first, begin))
            for index, first, last in places()
            if max(first, begin) < min(last, end)
        ]
        optimizer = make_lamb([{"params": [own], "weight_decay": decay}], **options)
        optimizer.bind({own: segments}, len(SHAPES), meeting.all_sum(rank))
        train(optimizer, [own], [[g[begin:end]] for g in flat_gradients])
        return own.detach(), optimizer.trust_ratios

    with ThreadPoolExecutor(ranks) as pool:
        results = list(pool.map(one_rank, range(ranks)))
    together = torch.cat([part for part, _ in results])
    for index, first, last in places():
        assert relative(together[first:last], expected[index].detach().reshape(-1)) <= 1e-12
    inside = torch.zeros(len(flat), dtype=torch.bool)
    for _, first, last in places():
        inside[first:last] = True
    assert (together[~inside] == 7.0).all()  # padding is nobody's
    assert all(ratios == results[0][1] for _, ratios in results)
    assert set(results[0][1]) == {0, 1, 2}


def test_a_rank_with_padding_only_is_waited_for():
    meeting = Meeting(2)

    def one_rank(rank):
        own = torch.nn.Parameter(torch.ones(4))
        optimizer = make_lamb([{"params": [own], "weight_decay": DECAY}])
        optimizer.bind({own: [Segment(0, 0, 4)] if rank == 0 else []}, 1, meeting.all_sum(rank))
        train(optimizer, [own], [[torch.ones(4)]])
        return own.detach()

    with ThreadPoolExecutor(2) as pool:
        full, empty = pool.map(one_rank, range(2))
    assert not torch.equal(full, torch.ones(4)) and torch.equal(empty, torch.ones(4))


class Allocations(TorchDispatchMode):
    """Bytes of the largest tensor any operation makes."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        known |= {a.data_ptr() for a in args if isinstance(a, torch.UntypedStorage)}
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, (list, tuple)) else [result]
        for tensor in made:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in known:
                    self.largest = max(self.largest, storage.nbytes())
        return result


def test_no_temporary_is_larger_than_a_block():
    parameter = torch.nn.Parameter(torch.ones(4 * BLOCK - 3))
    optimizer = make_lamb([parameter])
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()  # makes the moments
    with Allocations() as seen:
        optimizer.step()
    assert BLOCK * 4 <= seen.largest <= BLOCK * 8  # squares of the norms are float64


def test_compiled_arithmetic_is_the_same(monkeypatch):
    """Compiled once for every size, and equal to the arithmetic in blocks."""
    shapes = ((300, 70), (70,), (41,), (2,), (1,))
    weights = [w.float() for w in make_tensors(shapes)]
    gradients = all_gradients(shapes)
    decays = (DECAY, 0.0, DECAY, DECAY, DECAY)
    expected, blocks = run(weights, gradients, decays, {}, torch.float32)
    assert blocks._direction is module.direction_in_blocks
    monkeypatch.setattr(module, "COMPILED_FROM", 1)
    monkeypatch.setattr(module, "SMALL", 1)  # a length of 1 would be compiled on its own
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    found, compiled = run(weights, gradients, decays, {}, torch.float32)
    assert compiled._direction is not module.direction_in_blocks
    assert counters["stats"]["unique_graphs"] == 1, counters["stats"]
    for ours, theirs in zip(found, expected, strict=True):
        assert relative(ours.detach(), theirs.detach().double()) <= 1e-7
        for key in ("exp_avg", "exp_avg_sq"):
            reference = blocks.state[theirs][key].double()
            assert relative(compiled.state[ours][key], reference) <= 1e-7
