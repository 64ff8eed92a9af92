"""Acceptance of the launcher: `bash launch/test.sh --acceptance launcher [NUMBER ...]`.

Runs each point of the list and prints a line with its figure; exit code 1 if one fails.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for folder in ("tests/acceptance/support", "tests/integration", "tests/unit/launcher"):
    sys.path.insert(0, str(ROOT / folder))

import launcher_hosts as hosts
import run_support as runs
import test_sbatch as scripts
from launcher_work import WORK, corpus
from points import pytest_passes, run_points, say
from slurm_runs import SlurmRun
from slurm_support import SlurmLab

KEEP = "checkpoint.keep_last=99"


def two_nodes() -> bool:
    """1: the quickstart model on 2 nodes x 1 rank of a real SLURM, from `launch` to an export."""
    verb = [sys.executable, "-m", "roberta_dist.cli"]
    quickstart, run_dir = WORK / "quickstart", WORK / "two nodes"
    prepare = ["corpus=quickstart", "tokenizer.vocab_size=8192", f"output={quickstart}", "progress=false"]  # fmt: skip
    subprocess.run([*verb, "prepare", *prepare], check=True, stdout=subprocess.DEVNULL)
    settings = [
        "cluster=slurm", "cluster.nodes=2", "cluster.threads_per_worker=1", "experiment=quickstart",
        f"data.path={quickstart}", f"run_dir='{run_dir}'", "track.wandb=disabled",
    ]  # fmt: skip
    with SlurmLab() as lab:
        run = SlurmRun(lab, run_dir, quickstart)
        began = time.monotonic()
        command = lab.inside("ctl", *verb, "launch", *settings)
        subprocess.run(command, env=lab.environ, check=True, stderr=subprocess.DEVNULL)
        run.job = json.loads((run_dir / "jobs.jsonl").read_text())["job_id"]
        state = run.end(timeout=3600)
        took = time.monotonic() - began
    done = (run_dir / "DONE").is_file()
    exported = subprocess.run([*verb, "export", f"run_dir='{run_dir}'"], capture_output=True)
    last = runs.metrics(run_dir)[-1]
    fine = state == "COMPLETED" and done and exported.returncode == 0
    world = json.loads((run_dir / "environment.json").read_text()).get("world_size")
    figures = f"{state} after {took:.0f} s at step {last['step']}, world {world}, export {exported.returncode}"
    return say("1", fine, f"quickstart on node1 and node2: {figures}")


def undisturbed(steps: int) -> Path:
    """A run of so many steps by two ranks on this machine, made once."""
    run_dir = WORK / f"whole_{steps}"
    if not run_dir.is_dir():
        settings = [KEEP, f"schedule.max_steps={steps}", "checkpoint.every_steps=50"]
        runs.finish(runs.write_config(run_dir, corpus(), *settings), 2)
    return run_dir


def hurt(
    lab: SlurmLab, name: str, steps: int, event: Callable[[SlurmRun], object], *overrides: str
) -> bool:
    """Run a job, let `event` happen to it, and compare its end with a run that was left alone."""
    whole = undisturbed(steps)
    run = SlurmRun(lab, WORK / name.replace(" ", "_"), corpus())
    settings = [KEEP, f"schedule.max_steps={steps}", "checkpoint.every_steps=50", *overrides]
    launched = run.launch(*settings)
    if launched.returncode:
        return say("2", False, f"{name}: {launched.stderr}")
    event(run)
    state = "REQUEUED"
    while state == "REQUEUED":  # a slow machine reaches a time limit more than once
        run.start_now()
        state = run.end(timeout=600)
    compared = subprocess.run(
        [sys.executable, "tools/compare_runs.py", str(run.run_dir), str(whole)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    lines = [line["step"] for line in runs.metrics(run.run_dir)]
    complete = lines == [line["step"] for line in runs.metrics(whole)]
    restarts = lab.show(run.job)["Restarts"]
    log = run.log().splitlines()
    begins = [line.split()[-1] for line in log if " starts on " in line]
    done = (run.run_dir / "DONE").is_file()  # the last attempt may end on the limit itself
    fine = done and int(restarts) >= 1 and complete and compared.returncode == 0
    said = f"{state}, {restarts} restart(s) from {', '.join(begins[1:])}, {len(lines)} lines: {compared.stdout.strip()}"
    return say("2", fine, f"{name}: {said}") or bool(print(run.told()))


def at_step(step: int, action: Callable[[SlurmRun], object]) -> Callable[[SlurmRun], object]:
    """`action` once the run has reached `step`."""

    def event(run: SlurmRun) -> None:
        run.wait_for_step(step)
        action(run)

    return event


def requeues() -> bool:
    """2: a warning, the time limit with and without one, a requeue, a preemption, deaths."""
    with SlurmLab() as lab:
        for_all = {
            "scancel --signal=USR1": lambda run: lab.run("scancel", "--signal=USR1", run.job),
            "scontrol requeue": lambda run: lab.run("scontrol", "requeue", run.job),
            "kill -9 of rank 1": lambda run: run.worker(1).kill(),
            "kill -9 of rank 0": lambda run: run.worker(0).kill(),
        }
        results = []
        for transport in ("srun", "deepspeed"):
            for name, act in for_all.items():
                transported = f"cluster.slurm.transport={transport}"
                results.append(
                    hurt(lab, f"{name}, {transport}", 150, at_step(70, act), transported)
                )

        def nothing(run: SlurmRun) -> None:
            run.wait_for_step(1)

        limits = ("cluster.slurm.time='2'", "cluster.slurm.signal_lead_s=60")
        results.append(hurt(lab, "time limit with a warning", 1500, nothing, *limits))
        limits = ("cluster.slurm.time='1'", "cluster.slurm.signal_lead_s=0")
        # SLURM ends a job up to half a minute after its limit
        results.append(hurt(lab, "time limit without one", 4000, nothing, *limits))
        results.append(preempted(lab))
    name = "tests/integration/test_slurm.py"
    limits_kept = pytest_passes(name, "-k", "ever or stays or configuration or train")
    results.append(say("2", limits_kept[0], f"requeue limit, scancel, stop: {limits_kept[1]}"))
    return all(results)


def preempted(lab: SlurmLab) -> bool:
    """A job of a higher partition takes both nodes for a moment."""

    def event(run: SlurmRun) -> None:
        run.wait_for_step(70)
        lab.run("srun", "-p", "urgent", "-N2", "--exclusive", "true")

    return hurt(lab, "preemption", 150, event)


def hostile() -> bool:
    """5: hostile names in a script that is run, by stubs and by a real SLURM, and in a local run."""
    ok = say("5", *pytest_passes("tests/unit/launcher/test_sbatch_runs.py", "-k", "hostile"))
    ok &= say("5", *pytest_passes("tests/unit/launcher/test_sbatch.py", "-k", "refused"))
    ok &= say("5", *pytest_passes("tests/integration/test_operate.py", "-k", "watched"))
    return ok & say("5", *pytest_passes("tests/integration/test_slurm.py", "-k", "hostile"))


def large_job() -> bool:
    """6: 16 nodes x 8 GPUs, as a file, and as a cluster of that size takes it."""
    ok = say("6", *pytest_passes("tests/unit/launcher/test_sbatch.py", "-k", "engineer"))
    with SlurmLab(nodes=18, cpus=96, gpus=8, gpu_type="h100", partition="h100") as lab:
        test = lab.inside("ctl", "sbatch", "--test-only")
        text = scripts.GOLDEN.read_text(encoding="utf-8")
        done = subprocess.run(test, input=text, env=lab.environ, capture_output=True, text=True)
    answer = done.stderr.strip().splitlines()[-1]
    fine = done.returncode == 0 and "to start at" in answer
    return ok & say(
        "6", fine, f"sbatch --test-only of the golden file, 18 nodes of 8 GPUs: {answer}"
    )


def one_command() -> bool:
    """3: an array of three tasks, a merge and a training, each waiting for the one before."""
    return say("3", *pytest_passes("tests/integration/test_slurm.py", "-k", "one_command"))


POINTS = {
    "1": two_nodes, "2": requeues, "3": one_command, "4": hosts.point_4, "5": hostile, "6": large_job,
    "7": hosts.point_7, "8": hosts.point_8,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_points(POINTS, WORK))
