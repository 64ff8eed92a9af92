"""A probe of the engine, as the search for a micro-batch makes them, leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import world_support as support

pytestmark = pytest.mark.world
WORKER = Path(__file__).with_name("zero_worker.py")
RUNS = [
    *([stage, "fp32", "none"] for stage in (0, 1, 2, 3)),
    *([stage, "bf16", "none"] for stage in (1, 2, 3)),
    *([stage, "fp16", "none"] for stage in (1, 2, 3)),
    *([stage, "fp32", "cpu"] for stage in (1, 2, 3)),
]
"""Stage, precision, offload."""


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    output = tmp_path_factory.mktemp("probe") / "two.json"
    arguments = {"output": str(output), "tasks": {"probes": {"runs": RUNS}}}
    return support.run_world(WORKER, 2, arguments)


@pytest.mark.parametrize("run", ["-".join(map(str, run)) for run in RUNS])
def test_steps_between_probes_are_bit_for_bit_those_without(two_ranks, run):
    """After each probe: its state; after each step: its figures, and its state."""
    assert two_ranks["probes"][run] == [True] * 9
