"""Acceptance of the step's speed: `bash launch/test.sh --acceptance speed [NUMBER ...]`.

Runs each point of the list and prints a line with its figure; exit code 1 if one fails. 1, 4 and 7
are timed and want a machine that does nothing else.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
for folder in ("tests/acceptance/support", "tests/parity", "tools"):
    sys.path.insert(0, str(ROOT / folder))

from points import pytest_passes, run_points, say
from test_recompilation import WARM_UP, graphs

WORK = Path(tempfile.mkdtemp(prefix="speed-"))


def bench_step(*arguments: str) -> dict[str, float]:
    """The JSON line of tools/bench_step.py."""
    command = [sys.executable, str(ROOT / "tools/bench_step.py"), *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def step_on_cpu() -> bool:
    """1: base at 512 and mini at 128, fp32, dropout .1 in both, two threads."""
    keys = ("tokens_per_s", "ratio_hf", "ratio_hf_best", "ceiling_fraction", "mfu")
    base = bench_step("--size", "base", "--seq", "512", "--device", "cpu", "--threads", "2")
    mini = bench_step("--size", "mini", "--seq", "128", "--device", "cpu", "--threads", "2")
    for name, found in (("base 512", base), ("mini 128", mini)):
        say("1", True, f"{name}: { ({key: found[key] for key in (*keys, 'peak_memory_ratio')}) }")
    ok = say("1", base["ratio_hf"] >= 1.6, f"base: {base['ratio_hf']:.2f} x Hugging Face, >= 1.6")
    fraction, memory = base["ceiling_fraction"], base["peak_memory_ratio"]
    ok &= say("1", fraction >= 0.65, f"base: {fraction:.2f} of the products' rate, >= 0.65")
    ok &= say("1", memory <= 0.7, f"base: {memory:.2f} of Hugging Face's peak memory, <= 0.7")
    return ok & say("1", mini["ratio_hf"] >= 2.5, f"mini: {mini['ratio_hf']:.2f}, >= 2.5")


def parity() -> bool:
    """2: every kernel that runs here, all formats, fp32 and bf16, under every ZeRO stage."""
    files = ("tests/parity/test_kernel_parity.py", "tests/distributed/test_kernels_under_zero.py")
    ok = True
    for file in files:
        ok &= say("2", *pytest_passes(file))
    return ok


def recompilation() -> bool:
    """3: torch's own counters over 50 steps of training and evaluation."""
    ok = True
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        before, after = graphs(50, WARM_UP, True, device)
        fine = after == before and after["breaks"] == 0
        ok &= say("3", fine, f"{device}: after {WARM_UP} steps {before}, after 50 {after}")
    return ok


def loop() -> bool:
    """4: what a step costs beside the model and the optimizer."""
    from loop_cost import loop_cost

    wait, overhead = loop_cost(WORK)
    ok = say("4", wait <= 0.01, f"data wait {100 * wait:.2f} % of a quickstart step, <= 1 %")
    return ok & say("4", overhead <= 0.03, f"the loop at mini size {100 * overhead:.2f} %, <= 3 %")


def flops() -> bool:
    """5: the formula against FlopCounterMode, padded and without padding."""
    return say("5", *pytest_passes("tests/unit/plan/test_plan_flops.py"))


def gpu() -> bool:
    """6: on a GPU, if there is one."""
    if not torch.cuda.is_available():
        return say("6", True, "no GPU at hand: tests/gpu and bench_step --device cuda were not run")
    ok = say("6", *pytest_passes("tests/gpu"))
    for size, least in (("base", 0.5), ("large", 0.55)):
        found = bench_step("--size", size, "--seq", "512", "--device", "cuda")
        figures = [found[key] for key in ("mfu_matrix", "ratio_hf", "ratio_hf_best")]
        bounds = (least, 2.0, 1.3) if size == "base" else (least, 0.0, 0.0)
        reached = all(figure >= bound for figure, bound in zip(figures, bounds, strict=True))
        ok &= say("6", reached, f"{size}: of the matrix rate, x Trainer, x its best: {figures}")
    return ok


def trainer() -> bool:
    """7: the same loss as transformers' Trainer in less time, three seeds."""
    from compare_trainer import curves

    found = curves(WORK)
    figure = f"at most {found['largest_difference']:.4f} nats, at the end {found['difference']:.4f}"
    noise = f"seeds by {found['noise']:.4f} (median), at the end {found['spread']:.4f}"
    ok = say("7", found["overlap"], f"losses in any 50 steps differ by {figure}; {noise}")
    figure = f"{found['ours_s']:.0f} s, Trainer {found['hf_s']:.0f} s ({found['size']})"
    return ok & say("7", found["wall_ratio"] <= 0.5, f"{figure}: {found['wall_ratio']:.2f}, <= 0.5")


POINTS = {
    "1": step_on_cpu, "2": parity, "3": recompilation, "4": loop, "5": flops, "6": gpu, "7": trainer,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_points(POINTS, WORK))
