"""LAMB and AdamW on real DeepSpeed ranks against one process written from the papers."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from optim_runs import OPTIONS, low_reference, off, reference, run, start

pytestmark = pytest.mark.world
STEPS = 15
LAMB = [run("lamb", stage, micro, STEPS) for stage, micro in ((0, 8), (1, 2), (2, 8), (3, 2))]
COMPILED = [run("lamb", 2, 8, STEPS, compiled=True)]
OFFLOAD = [run("lamb", stage, 4, STEPS, offload="cpu") for stage in (1, 2, 3)]
ADAMW = [run("adamw", 3, 4, STEPS), run("adamw", 2, 4, STEPS, offload="cpu")]
WITH_OPTIONS = [run("lamb", stage, 4, STEPS, options=True) for stage in (0, 2, 3)]
NAIVE = [run("lamb", stage, 8, STEPS, naive=True) for stage in (0, 1, 2, 3)]
BF16 = [run("lamb", stage, 2, STEPS, precision="bf16") for stage in (1, 2, 3)]
BF16_OFFLOAD = [run("lamb", 3, 2, STEPS, precision="bf16", offload="cpu")]
FP16 = [run("lamb", s, 2, STEPS, precision="fp16", scale=2.0**22, window=6) for s in (1, 2, 3)]
SHORT = [run("lamb", stage, 8, STEPS, communication="bf16") for stage in (1, 2, 3)]
SKIPPED = [run("lamb", 2, 8, STEPS, skip=[3, 4])]

CALLS_A_STEP = {"Lamb": 1, "BF16_Optimizer": 1, "DeepSpeedZeroOptimizer": 2}
"""Class → the calls it makes a step: one for both groups, or one for each."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("optim")


@pytest.fixture(scope="module")
def saved(folder):
    return run("lamb", 2, 8, 5, tag="saved", save=str(folder / "saved"))


@pytest.fixture(scope="module")
def two_ranks(folder, saved):
    runs = [
        *LAMB,
        *COMPILED,
        *OFFLOAD,
        *ADAMW,
        *WITH_OPTIONS,
        *NAIVE,
        *BF16,
        *BF16_OFFLOAD,
        *FP16,
        *SHORT,
        *SKIPPED,
        saved,
    ]
    load = str(folder / "saved" / "step_00000005")
    runs.append(run("lamb", 3, 2, STEPS, tag="resumed", load=load, offload="cpu"))
    return start(2, runs, folder / "two.json") | {"resumed": runs[-1]["key"]}


@pytest.fixture(scope="module")
def expected():
    return {name: reference(name, STEPS) for name in ("lamb", "adamw")}


@pytest.mark.parametrize("case", [*LAMB, *COMPILED, *OFFLOAD, *ADAMW], ids=lambda case: case["key"])
def test_trace_is_that_of_one_process(two_ranks, expected, case):
    found = two_ranks[case["key"]]
    assert off(found["loss"], expected[case["optim"]["name"]]) < 1e-6
    if case["stage"] == 3:
        assert found["sub_groups"] >= 3


@pytest.mark.parametrize("case", WITH_OPTIONS, ids=lambda case: case["key"])
def test_options_are_those_of_one_process(two_ranks, case):
    assert off(two_ranks[case["key"]]["loss"], reference("lamb", STEPS, **OPTIONS)) < 1e-6


@pytest.mark.parametrize("case", NAIVE, ids=lambda case: case["key"])
def test_without_the_layout_it_is_another_optimizer(two_ranks, case):
    """The control: at stage 0 tensors are whole anyway, but a fused projection is one of them."""
    difference = off(two_ranks[case["key"]]["loss"], reference("lamb", STEPS, packed=True))
    assert difference < 1e-6 if case["stage"] == 0 else difference > 0.002


@pytest.mark.parametrize("case", [*BF16, *BF16_OFFLOAD], ids=lambda case: case["key"])
def test_bf16_with_fp32_master_weights(two_ranks, case):
    expected = low_reference("lamb", STEPS, case["micro"], ranks=2)
    assert off(two_ranks[case["key"]]["loss"], expected) < 1e-3


@pytest.mark.parametrize("case", SHORT, ids=lambda case: case["key"])
def test_short_communication_rounds_and_no_more(two_ranks, expected, case):
    assert 5e-7 < off(two_ranks[case["key"]]["loss"], expected["lamb"]) < 1e-2


@pytest.mark.parametrize("case", FP16, ids=lambda case: case["key"])
def test_fp16_finds_its_loss_scale(two_ranks, case):
    """From a scale that overflows, with a doubling on the way; the trace is that of any scale."""
    found = two_ranks[case["key"]]
    scales, last = found["scales"], found["scales"][-1]
    assert 1 < scales[0] < 2.0**22
    assert any(later == 2 * earlier for earlier, later in pairwise(scales))
    expected = low_reference("lamb", STEPS, 2, ranks=2, dtype=torch.float16, scale=last)
    assert off(found["loss"], expected) < 1e-3


@pytest.mark.parametrize("case", [*LAMB, *OFFLOAD, *BF16], ids=lambda case: case["key"])
def test_nothing_has_moved_before_the_first_step(two_ranks, case):
    found = two_ranks[case["key"]]
    assert found["untouched"]
    assert found["calls_a_step"] == (found["sub_groups"] or CALLS_A_STEP[found["class"]])


@pytest.mark.parametrize("case", SKIPPED, ids=lambda case: case["key"])
def test_a_skipped_batch_leaves_no_trace(two_ranks, case):
    found = two_ranks[case["key"]]
    assert found["skipped"] == [True, True]
    assert len(found["loss"]) == STEPS - 2


def test_resume_at_another_stage(two_ranks, expected):
    assert off(two_ranks[two_ranks["resumed"]]["loss"], expected["lamb"][5:]) < 1e-5


def test_a_rank_that_holds_padding_only_goes_along(folder):
    """A sub-group of two elements over four ranks: two of them have nothing of it, but are asked."""
    more = {"pairs": True, "options": True}
    cases = [run("lamb", 0, 4, 3, **more), run("lamb", 3, 4, 3, sub_group_size=1, **more)]
    whole, parted = (result["loss"] for result in start(4, cases, folder / "four.json").values())
    assert off(parted, whole) < 1e-6
