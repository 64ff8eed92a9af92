"""Jobs on a real SLURM of two nodes: they train, are hurt, come back, and lose no digit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from run_support import SMALL_CORPUS, metrics
from slurm_runs import ENDED, SlurmRun
from slurm_support import Missing, SlurmLab, wait_until

pytestmark = pytest.mark.world
ROOT = Path(__file__).resolve().parents[2]
KEEP = "checkpoint.keep_last=9"


@pytest.fixture(scope="module")
def lab():
    try:
        laboratory = SlurmLab()
    except Missing as why:
        pytest.skip(str(why))
    with laboratory:
        yield laboratory


@pytest.fixture
def run(lab, tmp_path, corpus):
    run = SlurmRun(lab, tmp_path / "a run", corpus)
    yield run
    if run.job:
        lab.run("scancel", run.job, check=False)


@pytest.fixture
def crowded(lab):
    """node1 with a full /dev/shm."""
    filler = "/dev/shm/filler"
    lab.run("fallocate", "-l", "450M", filler, node="node1")
    yield
    lab.run("rm", filler, node="node1")


@pytest.fixture
def slow_link(lab):
    """node2 sends 20 Mbit a second at most."""
    qdisc = ["dev", "eth0", "root", "tbf", "rate", "20mbit", "burst", "32kbit", "latency", "400ms"]
    try:
        lab.run("tc", "qdisc", "add", *qdisc, node="node2")
    except AssertionError as why:  # a kernel without sch_tbf
        pytest.skip(f"no traffic shaping here: {why}")
    yield
    lab.run("tc", "qdisc", "del", "dev", "eth0", "root", node="node2")


def assert_equal(left: Path, right: Path) -> None:
    command = [sys.executable, "tools/compare_runs.py", str(left), str(right)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line["step"] for line in metrics(left)] == [line["step"] for line in metrics(right)]


def test_two_nodes_train_as_one_machine_does(run, uninterrupted):
    done = run.launch(KEEP, "cluster.slurm.fit.all_reduce_mib_s=10")
    assert done.returncode == 0, done.stderr
    assert f"job {run.job}" in done.stderr and "roberta-dist stop" in done.stderr
    second = run.launch(KEEP)
    assert second.returncode == 2 and f"job {run.job} of this run is" in second.stderr
    assert run.end() == "COMPLETED", run.told()
    assert (run.run_dir / "DONE").is_file()
    assert_equal(run.run_dir, uninterrupted)
    assert "starts on node1,node2" in (run.run_dir / "attempts.log").read_text()
    fit = (run.run_dir / "logs" / f"job_{run.job}.0" / "preflight.txt").read_text()
    assert " all_reduce_node2=" in fit and " all_reduce_node1=" in fit
    assert json.loads((run.run_dir / "jobs.jsonl").read_text())["role"] == "train"
    script = (run.run_dir / "submit.sbatch").read_text()
    assert script == (run.run_dir / "slurm/submit_000/submit.sbatch").read_text()
    export = [sys.executable, "-m", "roberta_dist.cli", "export", f"run_dir='{run.run_dir}'"]
    subprocess.run(export, check=True, capture_output=True)
    assert (run.run_dir / "export" / "config.json").is_file()
    # what the workers say is wrong with the configuration stays wrong
    changed = run.launch(KEEP, "optim.lr=1e-3", "schedule.max_steps=50")
    assert changed.returncode == 0
    assert run.end() == "FAILED"
    assert run.lab.show(run.job)["ExitCode"] == "2:0" and "workers said 2" in run.log()


def test_a_warning_and_a_dead_rank_cost_no_digit(run, uninterrupted):
    assert run.launch(KEEP).returncode == 0
    run.wait_for_step(6)
    run.lab.run("scancel", "--signal=USR1", run.job)
    run.start_now()
    run.wait_for_step(25)
    run.worker(1).kill()
    run.start_now()
    assert run.end() == "COMPLETED", run.told()
    assert run.lab.show(run.job)["Restarts"] == "2"
    assert (run.run_dir / "logs" / f"job_{run.job}.2").is_dir()
    assert_equal(run.run_dir, uninterrupted)


def test_one_command_prepares_in_an_array_and_trains(run, corpus, uninterrupted):
    run.corpus = run.run_dir.parent / "made $(touch pwned) first"
    words = json.dumps([*SMALL_CORPUS, "prepare.tasks=3"])
    assert run.launch(KEEP, f"prepare_first={words}").returncode == 0
    jobs = [json.loads(line) for line in (run.run_dir / "jobs.jsonl").read_text().splitlines()]
    assert [job["role"] for job in jobs] == ["read", "tokenizer+join", "encode", "merge", "train"]
    assert run.lab.show(run.job)["Reason"] == "Dependency"
    assert run.end() == "COMPLETED", run.told()
    for split in ("train", "held_out"):
        name = f"{split}/manifest.json"
        assert (run.corpus / name).read_bytes() == (corpus / name).read_bytes()
    tasks = run.lab.run("squeue", "-h", "-t", "all", "-r", "-j", jobs[2]["job_id"], "-o", "%K %T")
    assert sorted(tasks.split()) == sorted(["0", "COMPLETED", "1", "COMPLETED", "2", "COMPLETED"])
    assert_equal(run.run_dir, uninterrupted)


def states_at_the_end(run) -> list[str]:
    """Of all jobs of the run, in the order of submission."""
    jobs = [json.loads(line)["job_id"] for line in (run.run_dir / "jobs.jsonl").open()]
    found: list[str] = []

    def ended() -> bool:
        found[:] = [run.lab.state(job) for job in jobs]
        return all(state in ENDED for state in found)

    wait_until(ended, 120, "end of all jobs")
    return found


def test_without_a_corpus_no_job_of_a_chain_trains(run):
    run.corpus = run.run_dir.parent / "never"
    words = json.dumps(["corpus=text", f"corpus.paths=[{run.corpus}.txt]"])
    assert run.launch(f"prepare_first={words}", "cluster.slurm.chain=3").returncode == 0
    assert states_at_the_end(run) == ["FAILED", *["CANCELLED"] * 6]
    assert not (run.run_dir / "logs").exists()
    told = run.verb("status").stdout
    assert "failed" in told and "(read) FAILED" in told, told


def test_the_rest_of_a_chain_is_called_off_when_the_run_is_done(run):
    assert run.launch("schedule.max_steps=5", "cluster.slurm.chain=3").returncode == 0
    assert states_at_the_end(run) == ["COMPLETED", "CANCELLED", "CANCELLED"]
    assert "done" in run.verb("status").stdout


def test_a_sweep_is_one_array_whose_members_come_back_alone(run, lab):
    sweep = run.run_dir
    swept = ["--multirun", "train.seed=1,2", "schedule.max_steps=150"]
    assert run.launch(*swept, "cluster.nodes=1", "dry_run=true").returncode == 0
    assert not sweep.exists()
    launched = run.launch(*swept, "cluster.nodes=1")
    assert launched.returncode == 0, launched.stderr
    members = [replace(run, run_dir=sweep / f"train.seed={seed}") for seed in (1, 2)]
    for part, member in enumerate(members):
        (line,) = (member.run_dir / "jobs.jsonl").read_text().splitlines()
        member.job = json.loads(line)["job_id"]
        assert member.job.endswith(f"_{part}")
    run.job = members[0].job.partition("_")[0]
    for member in members:  # one of them has the number of the whole array
        member.wait_for_step(3)
        lab.run("scancel", "--signal=USR1", "--batch", member.job)
        member.start_now()
    table = run.verb("status", f"run_dirs=['{sweep}/*']")
    assert "train.seed=1" in table.stdout and "train.seed=2" in table.stdout, table
    for member in members:
        assert member.end() == "COMPLETED", member.told()
        assert lab.show(member.job)["Restarts"] == "1"
        assert (member.run_dir / "DONE").is_file()
    assert metrics(members[0].run_dir) != metrics(members[1].run_dir)
    again = run.launch(*swept, "cluster.nodes=1")
    assert again.returncode == 0 and again.stderr.count("already complete") == 2, again.stderr


def test_a_chain_is_stopped_as_one_and_goes_on(run):
    assert run.launch("schedule.max_steps=400", "cluster.slurm.chain=2").returncode == 0
    jobs = [json.loads(line)["job_id"] for line in (run.run_dir / "jobs.jsonl").open()]
    run.job = jobs[0]
    run.wait_for_step(3)
    status = run.verb("status")
    assert "running (slurm)" in status.stdout and "node[1-2]" in status.stdout, status
    stopped = run.verb("stop")
    assert stopped.returncode == 0 and "on request at step" in stopped.stderr, stopped
    assert (run.run_dir / "STOP").is_file() and (run.run_dir / "REQUEUE").is_file()
    assert run.lab.run("squeue", "-h", "-j", ",".join(jobs), "-o", "%T").split() == []
    saved = json.loads((run.run_dir / "REQUEUE").read_text())["step"]
    assert run.verb("logs", "rank=job").stdout.strip()
    assert run.launch("schedule.max_steps=400").returncode == 0
    assert not (run.run_dir / "STOP").exists()
    run.wait_for_step(saved + 2)
    assert f"step={saved} " in (run.run_dir / "attempts.log").read_text()


def test_one_deepspeed_launcher_a_node(run, uninterrupted):
    assert run.launch(KEEP, "cluster.slurm.transport=deepspeed").returncode == 0
    run.wait_for_step(6)
    run.lab.run("scancel", "--signal=USR1", run.job)
    run.start_now()
    assert run.end() == "COMPLETED", run.told()
    assert "ended with 0 at checkpoint" in run.log()
    assert_equal(run.run_dir, uninterrupted)


def test_scancel_stays_cancelled(run):
    assert run.launch("schedule.max_steps=400").returncode == 0
    run.wait_for_step(3)
    run.lab.run("scancel", run.job)
    assert run.end() == "CANCELLED"
    assert run.lab.show(run.job)["Restarts"] == "0"
    assert (run.run_dir / "REQUEUE").is_file(), "SIGTERM saves"


def test_stop_stays_stopped(run):
    assert run.launch("schedule.max_steps=400").returncode == 0
    run.wait_for_step(3)
    (run.run_dir / "STOP").touch()
    run.lab.run("scancel", "--signal=USR1", run.job)
    assert run.end() == "COMPLETED"
    assert "stopped" in run.log()


@pytest.mark.parametrize(
    ("requeues", "restarts", "reason"),
    [
        (1, 1, "requeues=1 are used up"),
        (9, 1, "two attempts in a row ended there"),
        (0, 0, "used up"),
    ],
)
def test_a_job_does_not_come_back_for_ever(run, requeues, restarts, reason):
    assert run.launch(f"cluster.slurm.requeues={requeues}").returncode == 0
    for attempt in range(restarts + 1):
        run.worker(1).kill()
        if attempt < restarts:
            run.start_now()
        if requeues == 1:  # else the other rule would stop it
            (run.run_dir / "slurm" / "submit_000" / "ended").write_text("another\n")
    assert run.end() == "FAILED"
    assert run.lab.show(run.job)["Restarts"] == str(restarts)
    assert reason in run.log()


def test_an_unfit_node_is_left_out(run, crowded):
    short = ["schedule.max_steps=5", "cluster.nodes=1"]
    assert run.launch(*short, "cluster.slurm.spare_nodes=1").returncode == 0
    assert run.end() == "COMPLETED", run.told()
    attempts = (run.run_dir / "attempts.log").read_text()
    assert "node node1 is left out:" in attempts and "free in /dev/shm, wanted 128" in attempts
    assert "starts on node2" in attempts


def test_a_node_behind_a_slow_link_is_left_out(run, lab, slow_link):
    short = ["schedule.max_steps=5", "cluster.nodes=1", "cluster.slurm.spare_nodes=1"]
    only = ["cluster.slurm.fit.all_reduce_mib_s=10", "cluster.slurm.fit.bandwidth_mib_s=0"]
    assert run.launch(*short, *only).returncode == 0
    assert run.end() == "COMPLETED", run.told()
    told = re.search(
        r"node node2 is left out: all-reduce with node1: (.*) MiB/s; wanted", run.log()
    )
    assert told and float(told[1]) < 5, run.log()
    assert "starts on node1" in run.log()


def test_without_spares_the_job_waits_for_another_node(run, crowded):
    assert run.launch("schedule.max_steps=5", "cluster.nodes=1").returncode == 0
    run.start_now()
    assert run.end() == "COMPLETED", run.told()
    assert run.lab.show(run.job)["ExcNodeList"] == "node1"
    assert "starts on node2" in run.log()


def test_what_slurm_refuses_is_told_and_leaves_nothing(run):
    refused = run.launch("cluster.nodes=3")
    assert refused.returncode == 2
    assert "SLURM refuses the job" in refused.stderr and "not available" in refused.stderr
    assert not run.run_dir.exists()


def test_dry_run_prints_what_slurm_would_get_and_writes_nothing(run):
    shown = run.launch("dry_run=true", "cluster.slurm.time=1-00:00:00")
    assert shown.returncode == 0, shown.stderr
    assert "#SBATCH --time=1-00:00:00" in shown.stdout
    assert "to start at" in shown.stderr
    assert not run.run_dir.exists()


def test_hostile_names_are_names(run, lab):
    """As SLURM's own reader and bash take them: nothing runs, every file lies where it should."""
    name = """-n it's "q" $(touch pwned) `touch pwned` $HOME; touch pwned & * #c %j"""
    run.run_dir = run.run_dir.parent / name
    shown = name.replace("'", "\\'")
    done = run.launch("schedule.max_steps=5", f"cluster.environment={{EVIL: '{shown}'}}",
                      f"cluster.slurm.extra=['--comment={shown}']")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert run.end() == "COMPLETED", run.told()
    assert (run.run_dir / "DONE").is_file() and "done" in run.log()
    assert lab.run("squeue", "-h", "-j", run.job, "-t", "all", "-o", "%j").rstrip("\n") == name
    assert f"Comment={name}" in lab.run("scontrol", "show", "job", run.job)
    assert len(list((run.run_dir / "logs" / f"job_{run.job}.0").glob("rank_[01].out"))) == 2
    for folder in (run.run_dir.parent, Path.cwd()):
        assert not list(folder.glob("**/pwned"))
