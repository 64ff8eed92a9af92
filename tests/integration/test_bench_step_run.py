"""`tools/bench_step.py` runs from its command line and says all that it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "bench_step.py"
ARMS = {"ours", "hf", "hf_best", "ceiling"}


def bench_step(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def test_every_figure_is_there():
    sizes = ("--size", "tiny", "--seq", "128", "--rows", "4", "--steps", "2")
    done = bench_step(*sizes, "--threads", "1")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    for key in ("tokens_per_s", "ratio_hf", "ratio_hf_best", "ceiling_fraction", "mfu",
                "mfu_matrix", "peak_memory_ratio", "matrix_tflops"):  # fmt: skip
        assert figures[key] > 0, key
    assert figures["ceiling_flops"] == figures["flops"] > 0
    assert set(figures["step_s"]) == set(figures["peak_mib"]) == ARMS
    assert min(figures["step_s"].values()) > 0
    assert figures["tokens_per_s"] == pytest.approx(4 * 128 / figures["step_s"]["ours"], rel=0.01)
    # Untrained models of the same sizes on the same rows: all are as unsure.
    assert set(figures["loss"]) == ARMS - {"ceiling"}
    assert list(figures["loss"].values()) == pytest.approx([10.85] * 3, abs=0.1)
    said = {"size": "tiny", "seq": 128, "rows": 4, "steps": 2, "threads": 1, "precision": "fp32"}
    assert said.items() <= figures.items()
    assert 40 < figures["masked_tokens"] < 120
    assert figures["versions"]["torch"] and figures["device_name"] and figures["mfu_against"]


def test_a_batch_without_rows_is_refused():
    done = bench_step("--rows", "0")
    assert done.returncode == 2 and "--rows, --steps and --threads must be ≥ 1" in done.stderr
