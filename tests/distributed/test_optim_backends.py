"""Backends of the optimizer on real DeepSpeed ranks: another one's kernels, the same numbers."""

from __future__ import annotations

import pytest
from optim_runs import low_reference, off, reference, run, start

from roberta_dist.optim.backends import has_cpu_adam

pytestmark = pytest.mark.world
needs_cpu_adam = pytest.mark.skipif(
    not has_cpu_adam(), reason="DeepSpeed has no CPUAdam: launch/setup.sh builds it"
)
STEPS, SAVED = 12, 5
DEEPSPEED = [
    *(run("adamw", stage, 4, STEPS, backend="deepspeed") for stage in (0, 1, 2, 3)),
    *(run("adamw", stage, 4, STEPS, backend="deepspeed", offload="cpu") for stage in (2, 3)),
]
BF16 = run("adamw", 1, 2, STEPS, backend="deepspeed", precision="bf16")
FUSED_QKV = [run("lamb", stage, 4, STEPS, split_qkv=False) for stage in (0, 2, 3)]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backends")
    load = str(folder / "saved" / f"step_{SAVED:08d}")
    saved = run("adamw", 2, 4, SAVED, "saved", backend="deepspeed", save=str(folder / "saved"))
    resumed = [
        run("adamw", 3, 4, STEPS, "resumed", backend="deepspeed", load=load),
        run("adamw", 1, 4, STEPS, "resumed", load=load),
    ]
    runs = [*FUSED_QKV, *([*DEEPSPEED, BF16, saved, *resumed] if has_cpu_adam() else [])]
    return start(2, runs, folder / "two.json") | {"resumed": [case["key"] for case in resumed]}


@pytest.fixture(scope="module")
def expected():
    return reference("adamw", STEPS)


@needs_cpu_adam
@pytest.mark.parametrize("case", DEEPSPEED, ids=lambda case: case["key"])
def test_trace_is_that_of_one_process(two_ranks, expected, case):
    found = two_ranks[case["key"]]
    assert found["optimizer"] == "DeepSpeedCPUAdam"
    assert found["untouched"]
    assert off(found["loss"], expected) < 1e-6


@needs_cpu_adam
def test_bf16_with_fp32_master_weights(two_ranks):
    expected = low_reference("adamw", STEPS, BF16["micro"], ranks=2)
    assert off(two_ranks[BF16["key"]]["loss"], expected) < 1e-3


@needs_cpu_adam
def test_a_checkpoint_belongs_to_no_backend(two_ranks, expected):
    """Written by DeepSpeed's AdamW; continued by it at another stage, and by torch's."""
    by_deepspeed, by_torch = (two_ranks[key] for key in two_ranks["resumed"])
    assert by_deepspeed["optimizer"] == "DeepSpeedCPUAdam"
    assert by_torch["optimizer"] == "AdamW"
    for found in (by_deepspeed, by_torch):
        assert off(found["loss"], expected[SAVED:]) < 1e-5


@pytest.mark.parametrize("case", FUSED_QKV, ids=lambda case: case["key"])
def test_a_fused_projection_may_be_one_tensor(two_ranks, case):
    """As apex's FusedLAMB takes it, so that both backends are one optimizer."""
    found = two_ranks[case["key"]]["loss"]
    assert off(found, reference("lamb", STEPS, packed=True)) < 1e-6
    assert off(found, reference("lamb", STEPS)) > 1e-5
