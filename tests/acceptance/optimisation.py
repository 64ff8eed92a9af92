"""Acceptance of large-batch optimisation: `bash launch/test.sh --acceptance optimisation [NUMBER ...]`.

Runs each point of the list on real ranks and prints a line with its figure; exit code 1 if one
fails. The benchmark (5) wants a machine that does nothing else.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
for folder in ("integration", "distributed", "acceptance/support"):
    sys.path.insert(0, str(ROOT / "tests" / folder))

import large_batch_runs
from optim_runs import OPTIONS, low_reference, off, reference, run, start
from points import pytest_passes, run_points, say

WORK = Path(tempfile.mkdtemp(prefix="optimisation-"))
STEPS = 50
NAMES = ("lamb", "adamw")


def traces() -> bool:
    """1: every (stage, world), every (stage, accumulation) and every (world, accumulation)."""
    expected = {name: reference(name, STEPS) for name in NAMES}
    single = {name: reference(name, STEPS, torch.float32) for name in NAMES}
    figures = {name: f"{off(single[name], expected[name]):.1e}" for name in NAMES}
    ok = say("1 reference", all(float(f) < 1e-6 for f in figures.values()),
             f"one process in fp32 against float64: {figures}")  # fmt: skip
    for world in (1, 2, 4):
        cases = []
        for stage in (0, 1, 2, 3):
            accumulation = 4 if (stage + world // 2) % 2 else 1
            micro = 16 // world // accumulation
            cases += [run(name, stage, micro, STEPS) for name in NAMES]
        if world == 2:
            cases += [run("lamb", stage, 8, STEPS, naive=True) for stage in (0, 1, 2, 3)]
            cases += [run("lamb", stage, 4, STEPS, options=True) for stage in (0, 1, 2, 3)]
        found = start(world, cases, WORK / f"world{world}.json")
        ok &= _hold(world, cases, found, expected)
    return ok


def _hold(world: int, cases: list, found: dict, expected: dict) -> bool:
    ok = True
    packed = reference("lamb", STEPS, packed=True)
    optional = reference("lamb", STEPS, **OPTIONS)
    for case in cases:
        result, name = found[case["key"]], case["optim"]["name"]
        with_options = OPTIONS.keys() <= case["optim"].keys()
        trace = packed if case.get("naive") else optional if with_options else expected[name]
        figure = off(result["loss"], trace)
        control = case.get("naive") and case["stage"] > 0
        passed = figure > 0.01 if control else figure < 1e-6
        rest = f", {result['sub_groups']} sub-groups" if case["stage"] == 3 else ""
        accumulation = 16 // world // case["micro"]
        ok &= say(f"1 world {world} {case['key']}", passed,
                  f"accumulation {accumulation}: {figure:.1e}{' (control)' if control else ''}{rest}")  # fmt: skip
    return ok


def low_precision_and_offload() -> bool:
    """2: bf16 against a plain loop with fp32 master weights; CPU offload against float64."""
    bf16 = [run(n, stage, 2, STEPS, precision="bf16") for n in NAMES for stage in (1, 2, 3)]
    bf16 += [run(n, 3, 2, STEPS, precision="bf16", offload="cpu") for n in NAMES]
    offload = [run(n, stage, 4, STEPS, offload="cpu") for n in NAMES for stage in (1, 2, 3)]
    found = start(2, [*bf16, *offload], WORK / "precision.json")
    ok = True
    for name in NAMES:
        half, full = low_reference(name, STEPS, 2, ranks=2), reference(name, STEPS)
        for case in [*bf16, *offload]:
            if case["optim"]["name"] == name:
                low = "precision" in case
                figure = off(found[case["key"]]["loss"], half if low else full)
                ok &= say(f"2 {case['key']}", figure < (1e-3 if low else 1e-6), f"{figure:.1e}")
    return ok


def public_lamb() -> bool:
    """3: the same weights as a public implementation's, and a float64 formula's."""
    passed, line = pytest_passes("tests/parity/test_optim_parity.py", "tests/unit/optim", "-rs")
    return say("3", passed, f"tests/parity/test_optim_parity.py, tests/unit/optim: {line}")


def calls_before() -> bool:
    """4: how often DeepSpeed calls the optimizer before the first step, and what that moves."""
    cases = [run("lamb", stage, 4, 1) for stage in (0, 1, 2, 3)]
    cases += [run("lamb", stage, 4, 1, precision="bf16") for stage in (1, 2, 3)]
    cases += [run("lamb", stage, 4, 1, offload="cpu") for stage in (1, 2, 3)]
    found = start(2, cases, WORK / "calls.json")
    ok = True
    for case in cases:
        result = found[case["key"]]
        ok &= say(f"4 {case['key']}", result["untouched"],
                  f"{result['calls']} calls before the first step, {result['calls_a_step']} in it "
                  f"({result['class']}); weights and state untouched: {result['untouched']}")  # fmt: skip
    return ok


def bench_optim() -> bool:
    """5: the update's time and memory against torch's fused AdamW."""
    command = [sys.executable, "tools/bench_optim.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return say("5", False, f"bench_optim exit {done.returncode}: {done.stderr[-300:]}")
    figures = json.loads(lines[-1])
    fits = figures["bytes_per_param"] <= figures["bytes_bound"]
    ok = figures["ratio_adamw"] <= 1.7 and fits
    return say("5", ok, f"bench_optim: {figures}")


def resume() -> bool:
    """6: saved at ZeRO-2 on two ranks, resumed at ZeRO-1 on one and ZeRO-3 on four."""
    folder = WORK / "saved"
    runs = [run("lamb", 2, 4, STEPS), run("lamb", 2, 4, 25, tag="saved", save=str(folder))]
    whole = start(2, runs, WORK / "whole.json")[runs[0]["key"]]["loss"]
    ok = True
    for world, stage, micro in ((1, 1, 16), (4, 3, 2)):
        case = run("lamb", stage, micro, STEPS, load=str(folder / "step_00000025"))
        found = start(world, [case], WORK / f"resumed{world}.json")[case["key"]]["loss"]
        figure = off(found, whole[25:])
        ok &= say(f"6 ZeRO-2 x 2 -> ZeRO-{stage} x {world}", figure < 1e-5,
                  f"steps 25 to 50: {figure:.1e}")  # fmt: skip
    return ok


def large_batch() -> bool:
    """7: 30 LAMB steps of 8192 sequences against 960 AdamW steps of 256, at equal tokens."""
    means = {}
    for name in ("lamb", "adamw"):
        losses = [large_batch_runs.held_out_loss(WORK, name, seed) for seed in (1, 2)]
        means[name] = statistics.fmean(losses)
        say("7", True, f"{large_batch_runs.told(name)}: held-out loss {losses}")
    figure = f"LAMB {means['lamb']:.4f}, AdamW {means['adamw']:.4f} nats"
    return say("7", means["lamb"] <= means["adamw"] + 0.3, f"mean of two seeds: {figure}")


def micro_batch_auto() -> bool:
    """8: a size within the budget, the global batch exactly, and a refusal with the numbers."""
    folder = WORK / "micro"
    passed, line = pytest_passes(
        "tests/integration/test_micro_batch_run.py", f"--basetemp={folder}"
    )
    ok = say("8", passed, f"tests/integration/test_micro_batch_run.py: {line}")
    for path in sorted({path.resolve() for path in folder.glob("*/auto/micro_batch.json")}):
        record = json.loads(path.read_text())
        shown = ("micro_batch_size", "peak_mib", "for_trials_mib", "budget_mib", "trials_mib")
        say("8", True, f"{ {key: record[key] for key in shown} }")
    for path in sorted({path.resolve() for path in folder.glob("*/large/logs/*/rank_0.log")}):
        text = path.read_text()
        if "no micro-batch fits" in text:
            say("8", True, text[text.index("train.micro_batch_size") :].strip().splitlines()[0])
    return ok


POINTS = {
    "1": traces, "2": low_precision_and_offload, "3": public_lamb, "4": calls_before,
    "5": bench_optim, "6": resume, "7": large_batch, "8": micro_batch_auto,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_points(POINTS, WORK))
