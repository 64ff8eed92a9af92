"""Every kernel under every ZeRO stage: compiled pieces see weights that stage 3 gathers and lets go."""

import pytest
from optim_runs import off, reference, run, start

pytestmark = pytest.mark.world

STEPS = 6
COMPILED = {"fusion": "compiled"}
CASES = [
    *(run("adamw", stage, 4, STEPS, kernels=COMPILED) for stage in (0, 1, 2, 3)),
    run("lamb", 3, 4, STEPS, kernels=COMPILED | {"activation_checkpointing": True}),
    run("lamb", 3, 4, STEPS, kernels={"attention": "varlen", "cross_entropy": "torch"}),
    run("adamw", 2, 8, STEPS, kernels={"attention": "sdpa", "fusion": "eager"}),
]
LOW = [run("adamw", stage, 4, STEPS, kernels=COMPILED, precision="bf16") for stage in (2, 3)]


def test_the_trace_does_not_depend_on_kernels(tmp_path):
    found = start(2, [*CASES, *LOW], tmp_path / "world.json")
    expected = {name: reference(name, STEPS) for name in ("adamw", "lamb")}
    for case in CASES:
        assert off(found[case["key"]]["loss"], expected[case["optim"]["name"]]) < 1e-6, case["key"]
    for case in LOW:
        assert off(found[case["key"]]["loss"], expected["adamw"]) < 1e-2, case["key"]
