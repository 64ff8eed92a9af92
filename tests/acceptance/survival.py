"""Acceptance of survival: `bash launch/test.sh --acceptance survival [NUMBER ...]`.

Runs each point of the list and prints a line with its figure; exit code 1 if one fails.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
for folder in ("tests/acceptance/support", "tests/integration", "tools"):
    sys.path.insert(0, str(ROOT / folder))

import run_support as runs
from points import pytest_passes, run_points, say

from roberta_dist.checkpoint.reader import load_weights
from roberta_dist.runtime.rundir import complete_steps

WORK = Path(tempfile.mkdtemp(prefix="survival-"))
KEEP = "checkpoint.keep_last=99"
PLAIN = ("model.dropout=0", "model.attention_dropout=0")
SIGNAL_WORKER = ROOT / "tests/acceptance/support/signal_worker.py"


def corpus() -> Path:
    """A small corpus, made once."""
    folder = WORK / "corpus"
    return folder if folder.is_dir() else runs.prepare_corpus(folder)


def tool(*words: str, check: bool = False) -> dict[str, Any]:
    """The JSON line of a tool."""
    done = subprocess.run([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if check and done.returncode:
        raise SystemExit(f"{words[0]} ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def chaos() -> bool:
    """1: 25 seeded kills, at random instants and inside saves."""
    ok = True
    for stage, asynchronous in ((1, "false"), (2, "false"), (2, "true")):
        work = WORK / f"chaos{stage}{asynchronous}"
        found = tool(
            "tools/chaos.py", str(work), "--kills", "25", "--seed", str(stage),
            f"engine.stage={stage}", f"checkpoint.asynchronous={asynchronous}",
        )  # fmt: skip
        fine = found["survived"] and found["identical"] and found["kills"] == 25
        # Beside the steps a save takes some: they are lost too when it is cut short.
        fine = fine and found["max_lost_steps"] <= (10 if asynchronous == "false" else 20)
        ok &= say("1", fine, f"ZeRO-{stage}, asynchronous={asynchronous}: {found}")
    return ok


def matrix() -> bool:
    """2: one run through every stage and world, each cell left and entered once."""
    cells = [(stage, world) for world in (1, 2, 4) for stage in (0, 1, 2, 3)]
    order = [cells[(5 * i) % 12] for i in range(12)]
    ok = True
    for optimizer in ("adamw", "lamb"):
        settings = [
            KEEP,
            *PLAIN,
            f"optim.name={optimizer}",
            "schedule.decay=constant",
            "schedule.warmup_steps=0",
            "evaluate.every_steps=0",
        ]
        whole, moved = WORK / f"{optimizer}_whole", WORK / f"{optimizer}_moved"
        runs.finish(
            runs.write_config(
                whole, corpus(), *settings, "engine.stage=0", "schedule.max_steps=36"
            ),
            1,
        )
        for part, (stage, world) in enumerate(order):
            overrides = [f"engine.stage={stage}", f"schedule.max_steps={3 * (part + 1)}"]
            config = runs.write_config(moved, corpus(), *settings, *overrides)
            runs.finish(config, world, f"attempt_{part:03d}")
        expected, found = runs.losses(whole), runs.losses(moved)
        off = max(abs(found[s] - expected[s]) / expected[s] for s in expected)
        fine = found.keys() == expected.keys() and off <= 1e-5
        ok &= say("2", fine, f"{optimizer}: 12 cells {order}: {off:.1e}, <= 1e-5")
    return ok


def damage() -> bool:
    """3: the newest checkpoint damaged in seven ways."""
    ok = say("3", *pytest_passes("tests/unit/train/test_newest.py"))
    name = "tests/integration/test_survival.py::test_a_damaged_newest_checkpoint_costs_steps_and_no_digit"
    return ok & say("3", *pytest_passes(name))


@contextmanager
def small_disk(mib: int) -> Iterator[Path]:
    """A file system of so many MiB."""
    folder = WORK / "disk"
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def full_disk() -> bool:
    """4: no room for a checkpoint, found before it is written and while it is."""
    with small_disk(4) as disk:
        run_dir = disk / "run"
        config = runs.write_config(run_dir, corpus(), KEEP, "checkpoint.every_steps=2")
        ranks = runs.start(config, 2, output=WORK)
        codes = ranks.wait()
        told = re.search(
            r"checkpoint of step (\d+) is not saved: (.*needs \d+ bytes.*)", ranks.output()
        )
        newest = complete_steps(run_dir / "checkpoints")[-1]
        loads = bool(load_weights(run_dir / "checkpoints" / f"step_{newest:08d}"))
        last = runs.metrics(run_dir)[-1]["step"]
        fine = told is not None and loads and last == 40 and codes == [3, 3]
        say("4", fine, f"went on to step {last} of 40, step {newest} loads; {told and told[0]}")
    found = {}
    with small_disk(64) as disk:
        found = tool("tools/chaos.py", str(disk), "--kills", "2", "--faults", "disk")
    filled = found["survived"] and found["identical"] and found["kills"] == 2
    return fine & say("4", filled, f"filled during a run and freed again: {found}")


def stall() -> bool:
    """5: what a save beside the steps keeps them waiting."""
    found = tool("tools/bench_checkpoint.py", "--size", "base", check=True)
    fine = found["async_stall_ratio"] <= 0.2 and found["identical"]
    return say("5", fine, f"{found}")


def hurt_launch(name: str, signum: int, *overrides: str) -> tuple[Path, int, float]:
    """(run folder, exit code of launch, seconds from the signal to the end of it)."""
    run_dir = WORK / name
    settings = [f"run_dir={run_dir}", f"data.path={corpus()}", *runs.TINY, KEEP, "cluster.workers_per_node=2",
                "schedule.max_steps=200", *overrides]  # fmt: skip
    command = [sys.executable, "-m", "roberta_dist.cli", "launch", *settings]
    with open(WORK / f"{name}.log", "wb") as log:
        launcher = subprocess.Popen(command, stdout=log, stderr=log)
        while not any(line["step"] >= 30 for line in runs.metrics(run_dir)):
            assert launcher.poll() is None
            time.sleep(0.01)
        began = time.monotonic()
        runs.worker_of(run_dir, 1).send_signal(signum)
        return run_dir, launcher.wait(), time.monotonic() - began


def hang() -> bool:
    """6: a rank that stands still, and one that dies."""
    timeout = 10
    run_dir, code, took = hurt_launch(
        "stopped", signal.SIGSTOP, f"train.hang_timeout_s={timeout}", "cluster.restarts=0"
    )
    stacks = (run_dir / "logs/attempt_000/rank_0.stacks").read_text()
    fine = code == 5 and took <= timeout + 30 and "in fit" in stacks
    ok = say(
        "6",
        fine,
        f"SIGSTOP: stacks of rank 0, exit code {code} after {took:.0f} s (timeout {timeout})",
    )
    _, code, took = hurt_launch("killed", signal.SIGKILL, "cluster.restarts=0")
    ok &= say(
        "6",
        code == 6 and took <= 30,
        f"SIGKILL: the job ends after {took:.0f} s (code {code}), <= 30",
    )
    run_dir, code, took = hurt_launch("restarted", signal.SIGKILL)
    fine = code == 0 and (run_dir / "DONE").is_file()
    return ok & say("6", fine, f"SIGKILL with restarts: done {took:.0f} s later")


def non_finite() -> bool:
    """7: a NaN at a chosen row, at every stage, in fp32 and bf16."""
    ok, traces = True, {}
    for stage, precision in [(0, "fp32"), *((s, p) for p in ("fp32", "bf16") for s in (1, 2, 3))]:
        settings = [KEEP, *PLAIN, f"engine.stage={stage}", f"engine.precision={precision}",
                    "schedule.max_steps=12", "evaluate.every_steps=0"]  # fmt: skip
        found = []
        for name, extra in (
            ("nan", ["guard.inject_nan_rows=[101]", "train.skip_budget=1"]),
            ("listed", ["train.skip_steps=[7]"]),
        ):
            run_dir = WORK / f"{name}{stage}{precision}"
            runs.finish(runs.write_config(run_dir, corpus(), *settings, *extra), 2)
            found.append(run_dir)
        last = "checkpoints/step_00000012"
        same = runs.deterministic(found[0]) == runs.deterministic(found[1])
        same = same and runs.same_weights(found[0] / last, found[1] / last)
        entry = json.loads((found[0] / "skips.jsonl").read_text())
        lines = sum(line["step"] == 7 for line in runs.metrics(found[0]))
        fine = same and lines == 1 and (entry["first_row"], entry["end_row"]) == (96, 112)
        traces[stage, precision] = runs.losses(found[0])
        ok &= say(
            "7", fine, f"ZeRO-{stage} {precision}: equal to train.skip_steps=[7]: {same}; {entry}"
        )
    for precision in ("fp32", "bf16"):
        own = [trace for (_, p), trace in traces.items() if p == precision]
        off = max(abs(t[s] - own[0][s]) / own[0][s] for t in own for s in t if t[s] is not None)
        ok &= say(
            "7",
            off <= (1e-5 if precision == "fp32" else 2e-2),
            f"{precision}: stages differ by {off:.1e}",
        )
    ranks = runs.start(
        runs.write_config(WORK / "budget", corpus(), "guard.inject_nan_rows=[33]"), 2
    )
    codes = ranks.wait()
    told = re.search(r"step 3: loss=nan.*is used up", ranks.output())
    return ok & say(
        "7", codes == [4, 4] and told is not None, f"beyond the budget: {codes}, {told and told[0]}"
    )


def start_signalled(config: Path, phase: str, world: int) -> tuple[list[int], str]:
    """Exit codes and output of a world whose last rank gets a SIGTERM in `phase`."""
    processes, log = [], config.parent / f"{phase}.out".replace(" ", "_")
    port = runs.free_port()
    for rank in range(world):
        environ = os.environ | runs.world_environ(rank, world, port, "attempt_000")
        with open(log, "ab") as output:
            command = [sys.executable, str(SIGNAL_WORKER), phase, str(config)]
            processes.append(subprocess.Popen(command, env=environ, stdout=output, stderr=output))
    return [process.wait(240) for process in processes], log.read_text()


def signals() -> bool:
    """8: SIGTERM in the middle of everything."""
    whole = WORK / "undisturbed"
    runs.finish(runs.write_config(whole, corpus(), KEEP), 2)
    ok = True
    for phase in ("start-up", "data loading", "forward", "optimizer step", "save", "evaluation"):
        run_dir = WORK / f"signal {phase}"
        config = runs.write_config(run_dir, corpus(), KEEP)
        codes, output = start_signalled(config, phase, 2)
        left = run_dir / "REQUEUE"
        step = json.loads(left.read_text())["step"] if left.is_file() else -1
        before = complete_steps(run_dir / "checkpoints")
        saved = codes == [0, 0] and before == sorted({*range(10, step + 1, 10), step} - {0})
        runs.finish(config, 2, "attempt_001")
        went_on = f"attempt_001 step={step} " in (run_dir / "attempts.log").read_text()
        last = "checkpoints/step_00000040"
        same = runs.deterministic(run_dir) == runs.deterministic(whole)
        same = same and runs.same_weights(run_dir / last, whole / last)
        fine = saved and went_on and same
        ok &= say(
            "8",
            fine,
            f"{phase}: codes {codes}, checkpoints {before}, goes on from {step}, equal {same}",
        )
        if not fine:
            print(output[-2000:])
    return ok


POINTS = {
    "1": chaos, "2": matrix, "3": damage, "4": full_disk, "5": stall, "6": hang, "7": non_finite,
    "8": signals,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_points(POINTS, WORK))
