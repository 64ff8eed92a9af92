"""Gradient, optimizer and resume laws on real DeepSpeed ranks against plain torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import world_support as support

from roberta_dist.optim.groups import parameter_groups
from roberta_dist.stream.tensors import to_tensors

pytestmark = pytest.mark.world
WORKER = Path(__file__).with_name("zero_worker.py")
STEPS = 20
TASKS = {
    "traces": {"stages": [0, 1, 2, 3], "steps": STEPS},
    "bad_numbers": {"stages": [0, 1, 2, 3]},
    "small_gradients": {},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("zero")


@pytest.fixture(scope="module")
def two_ranks(folder):
    tasks = TASKS | {
        "gradients": {"splits": [[0, 2], [2, 2]]},
        "checkpoints": {"checkpoints": str(folder), "save": [1, 3], "load": [[1, 2]]},
    }
    return support.run_world(WORKER, 2, {"output": str(folder / "two.json"), "tasks": tasks})


@pytest.fixture(scope="module")
def one_rank(folder, two_ranks):
    tasks = {
        "traces": {"stages": [3], "steps": STEPS},
        "gradients": {"splits": [[0, 8], [0, 4], [3, 4]]},
        "checkpoints": {
            "checkpoints": str(folder), "save": [], "load": [[1, 3], [1, 0], [3, 0], [3, 1]],
        },
    }  # fmt: skip
    return support.run_world(WORKER, 1, {"output": str(folder / "one.json"), "tasks": tasks})


@pytest.fixture(scope="module")
def reference():
    """One process, plain torch: the whole batch at once, AdamW, loss per masked token."""
    torch.set_num_threads(1)
    model = support.make_model()
    groups = parameter_groups(model.named_parameters(), support.OPTIM)
    optimizer = torch.optim.AdamW(
        groups, lr=support.LR, betas=(0.9, 0.98), eps=1e-6, foreach=False, fused=False
    )
    losses, gradient = [], {}
    for step in range(STEPS):
        rows = list(range(step * support.ROWS, (step + 1) * support.ROWS))
        batch = support.random_batch(rows)
        loss = model(**to_tensors(batch, torch.device("cpu"))) / len(batch.masked_index_M)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            gradient = {n: p.grad.double().clone() for n, p in model.named_parameters()}
        optimizer.step()
        losses.append(float(loss.detach()))
    return {"loss": losses, "gradient": gradient, "groups": len(groups)}


def relative(left: list[float], right: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("stage", ["0", "1", "2", "3"])
def test_every_stage_equals_plain_torch(two_ranks, reference, stage):
    trace = two_ranks["traces"]["loss"][stage]
    assert relative(trace, reference["loss"]) < 1e-6
    assert trace[-1] < trace[0]


def test_one_rank_equals_plain_torch(one_rank, reference):
    assert relative(one_rank["traces"]["loss"]["3"], reference["loss"]) < 1e-6


def test_two_groups_and_several_sub_groups_took_part(two_ranks, reference):
    assert reference["groups"] == two_ranks["traces"]["groups"] == 2
    assert two_ranks["traces"]["sub_groups"] >= 3


def test_gradient_norm_is_the_same_at_every_stage(two_ranks):
    norms = two_ranks["traces"]["norm"]
    for stage in ("1", "2", "3"):
        assert relative(norms[stage], norms["0"]) < 1e-5


@pytest.mark.parametrize("split", ["1-0-8", "1-0-4", "1-3-4", "2-0-2", "2-2-2"])
def test_gradient_does_not_depend_on_the_split(folder, one_rank, two_ranks, reference, split):
    world = "one" if split.startswith("1") else "two"
    found = torch.load(folder / f"{world}.json.grad-{split}.pt", weights_only=True)
    for name, expected in reference["gradient"].items():
        assert (found[name] - expected).norm() <= 1e-6 * expected.norm() + 1e-12, name


@pytest.mark.parametrize("stage", ["1", "2", "3"])
def test_small_gradients_survive_bf16(two_ranks, stage):
    assert two_ranks["small_gradients"][stage] == pytest.approx(1.123046875, abs=1e-7)


@pytest.mark.parametrize("stage", ["0", "1", "2", "3"])
def test_a_bad_batch_moves_nothing(two_ranks, stage):
    assert two_ranks["bad_numbers"][stage] == [True, False, True, True]


def test_resume_at_another_stage_and_world(two_ranks, one_rank):
    saved, here, alone = two_ranks["checkpoints"], two_ranks["checkpoints"], one_rank["checkpoints"]
    for source, traces in (
        ("1", [here["1to2"], alone["1to3"], alone["1to0"]]),
        ("3", [alone["3to0"], alone["3to1"]]),
    ):
        for trace in traces:
            assert relative(trace, saved[f"saved{source}"]) < 1e-5
