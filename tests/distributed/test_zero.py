"""Gradient, optimizer and resume laws on real DeepSpeed ranks against plain torch."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path

import pytest
import torch
import world_support as support

from roberta_dist.optim.groups import parameter_groups
from roberta_dist.stream.tensors import to_tensors

pytestmark = pytest.mark.world
WORKER = Path(__file__).with_name("zero_worker.py")
STEPS = 20
MICRO, MICRO_STEPS = 2, [1, 3, 2, 3, 1, 2]
"""Rows of a micro-batch, and how many of them each step of a batch-size ramp has on a rank."""
RAMPS = [
    *([stage, "fp32", 3] for stage in (0, 1, 2, 3)),
    *([stage, "bf16", 3] for stage in (1, 2, 3)),
    *([stage, "fp32", 7] for stage in (0, 1, 2, 3)),
]
"""Stage, precision and the number of micro-batches that DeepSpeed is told."""
PAIR_SPLITS = {
    "1": [[0, 8, True], [3, 2, True]],
    "2": [[0, 1, True], [1, 2, True], [2, 4, True], [3, 2, True], [3, 1, True]],
}
"""Ranks → stage, rows of a micro-batch, pairs."""
PLACES = [*product((0, 1, 2, 3), ("none",)), *product((1, 2, 3), ("cpu",))]
"""Stage and where the optimizer state lives."""
TASKS = {
    "traces": {"stages": [0, 1, 2, 3], "steps": STEPS},
    "bad_numbers": {"stages": [[stage, where] for stage, where in PLACES]},
    "small_gradients": {},
    "waits": {},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("zero")


@pytest.fixture(scope="module")
def two_ranks(folder):
    tasks = TASKS | {
        "gradients": {"splits": [[0, 2, False], [2, 2, False], *PAIR_SPLITS["2"]]},
        "ramp": {"micro": MICRO, "micro_steps": MICRO_STEPS, "runs": RAMPS},
        "checkpoints": {"checkpoints": str(folder), "save": [1, 3], "load": [[1, 2]]},
    }
    return support.run_world(WORKER, 2, {"output": str(folder / "two.json"), "tasks": tasks})


@pytest.fixture(scope="module")
def one_rank(folder, two_ranks):
    tasks = {
        "traces": {"stages": [3], "steps": STEPS},
        "gradients": {"splits": [[0, 8, False], [0, 4, False], [3, 4, False], *PAIR_SPLITS["1"]]},
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


def named_gradient(model, objective):
    objective.backward()
    return {name: p.grad.double().clone() for name, p in model.named_parameters()}


@pytest.fixture(scope="module")
def pair_gradient():
    """One process, plain torch, the whole batch at once: both losses over their own counts."""
    torch.set_num_threads(1)
    model = support.make_model(pairs=True)
    batch = support.random_batch(support.pair_rows(0, support.ROWS), pairs=True)
    masked, answered, _ = model(**to_tensors(batch, torch.device("cpu")))
    pairs = support.ROWS - 1
    return named_gradient(model, masked / len(batch.masked_index_M) + answered / pairs)


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def ramp_reference(request):
    """One process, plain torch: fp32 weights, a copy of them in the precision that computes, fp32
    sums of the gradients of the micro-batches."""
    torch.set_num_threads(1)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[request.param]
    module = support.make_model(pairs=True).to(dtype)
    master = copy.deepcopy(module).float()  # DeepSpeed takes its fp32 weights from the rounded ones
    groups = parameter_groups(master.named_parameters(), support.OPTIM)
    optimizer = torch.optim.AdamW(groups, lr=support.LR, betas=(0.9, 0.98), eps=1e-6, fused=True)
    trace = {name: [] for name in ("loss", "nsp_loss", "nsp_accuracy", "grad_norm", "counts")}
    for step, micro_steps in enumerate(MICRO_STEPS):
        rows = 2 * MICRO * micro_steps
        row_ids = support.pair_rows(step * rows, rows)
        parts = [
            support.random_batch(row_ids[i : i + MICRO], pairs=True) for i in range(0, rows, MICRO)
        ]
        masked, pairs = sum(len(part.masked_index_M) for part in parts), rows - 1
        for weight, rounded in zip(master.parameters(), module.parameters(), strict=True):
            rounded.data.copy_(weight.data)
            weight.grad = torch.zeros_like(weight)
        totals = torch.zeros(3, dtype=torch.float64)
        for part in parts:
            module.zero_grad()
            sums = module(**to_tensors(part, torch.device("cpu")))
            # scaled as two ranks scale it: bf16 rounds what is scaled another way differently
            (sums[0] * (2 / masked) + sums[1] * (2 / pairs)).backward()
            for weight, rounded in zip(master.parameters(), module.parameters(), strict=True):
                weight.grad += rounded.grad.float() / 2
            totals += sums.detach().double()
        squares = [weight.grad.double().square().sum() for weight in master.parameters()]
        trace["grad_norm"].append(float(torch.stack(squares).sum().sqrt()))
        optimizer.step()
        trace["loss"].append(float(totals[0]) / masked)
        trace["nsp_loss"].append(float(totals[1]) / pairs)
        trace["nsp_accuracy"].append(float(totals[2]) / pairs)
        trace["counts"].append([masked, pairs])
    module.load_state_dict(master.state_dict())
    held_out = support.random_batch(
        support.pair_rows(1000 * support.ROWS, support.ROWS), pairs=True
    )
    sums = module.eval()(**to_tensors(held_out, torch.device("cpu"))).tolist()
    counts = {"masked": len(held_out.masked_index_M), "pairs": support.ROWS - 1}
    trace["held_out"] = {"mlm": sums[0], "nsp": sums[1], "correct": sums[2], **counts}
    return request.param, trace


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


@pytest.mark.parametrize(
    "split",
    [f"{ranks}-{stage}-{micro}" for ranks, all_ in PAIR_SPLITS.items() for stage, micro, _ in all_],
)
def test_gradient_of_pairs_does_not_depend_on_the_split(
    folder, one_rank, two_ranks, pair_gradient, split
):
    """Ranks and micro-batches differ in masked tokens and in pairs; one has neither."""
    world = "one" if split.startswith("1") else "two"
    found = torch.load(folder / f"{world}.json.grad-{split}-pairs.pt", weights_only=True)
    assert found.keys() == pair_gradient.keys()
    for name, expected in pair_gradient.items():
        assert expected.norm() > 0, name
        assert (found[name] - expected).norm() <= 1e-6 * expected.norm() + 1e-12, name


def test_a_step_may_have_any_number_of_micro_batches(two_ranks, ramp_reference):
    """Losses, accuracy, gradient norms and held-out sums of a ramp, at every stage."""
    precision, expected = ramp_reference
    runs = {run: found for run, found in two_ranks["ramp"].items() if precision in run}
    assert len(runs) == sum(precision in run for run in RAMPS)
    for run, found in runs.items():
        assert all(found["applied"]), run
        assert found["counts"] == expected["counts"], run
        assert found["nsp_accuracy"] == pytest.approx(expected["nsp_accuracy"], abs=1e-12), run
        for name, tolerance in (("loss", 1e-6), ("nsp_loss", 1e-6), ("grad_norm", 2e-6)):
            assert relative(found[name], expected[name]) < tolerance, (run, name)
        assert found["held_out"] == pytest.approx(expected["held_out"], rel=1e-6), run


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_nothing_is_divided_by_the_configured_micro_batches(two_ranks, stage):
    assert two_ranks["ramp"][f"{stage}-fp32-3"] == two_ranks["ramp"][f"{stage}-fp32-7"]


@pytest.mark.parametrize("place", [f"{stage}-{where}" for stage, where in PLACES[1:]])
def test_small_gradients_survive_bf16(two_ranks, place):
    assert two_ranks["small_gradients"][place] == pytest.approx(1.123046875, abs=1e-7)


@pytest.mark.parametrize("place", [f"{stage}-{where}" for stage, where in PLACES])
def test_a_bad_batch_moves_nothing(two_ranks, place):
    assert two_ranks["bad_numbers"][place] == [True, False, False, True, True]


@pytest.mark.parametrize("stage", [0, 1])
def test_a_step_waits_as_often_whatever_its_micro_batches(two_ranks, stage):
    """Stages 2 and 3 exchange gradients, or weights, with each micro-batch: that is what they are."""
    one, four = (two_ranks["waits"][f"{stage} {micro_steps}"] for micro_steps in (1, 4))
    assert one == four and one["collectives"] >= 3 and one["read"] >= 1


def test_resume_at_another_stage_and_world(two_ranks, one_rank):
    saved, here, alone = two_ranks["checkpoints"], two_ranks["checkpoints"], one_rank["checkpoints"]
    for source, traces in (
        ("1", [here["1to2"], alone["1to3"], alone["1to0"]]),
        ("3", [alone["3to0"], alone["3to1"]]),
    ):
        for trace in traces:
            assert relative(trace, saved[f"saved{source}"]) < 1e-5
