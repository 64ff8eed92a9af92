"""The job script as bash runs it, with SLURM's tools replaced by stubs; and a bash that is attacked."""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from test_sbatch import TEMPLATE, composed, job

from roberta_dist.config.roots import PretrainConfig
from roberta_dist.launcher.sbatch import render
from roberta_dist.launcher.steps import Job

pytestmark = pytest.mark.unit
HOSTILE = """-n 'q' "d" $(touch pwned) `touch pwned` ${HOME} $HOME ;touch pwned; & | > pwned * #c !! %j ~"""
"""One value with everything that a shell might act on; no path holds a slash."""


def stub(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def execute(
    script: str, tmp_path: Path, run_dir: Path, workers: str, fit: str = "node1 fit\\nnode2 fit\\n"
) -> subprocess.CompletedProcess[str]:
    """Run the script in bash, with srun and its like replaced by stubs that note what they are given.

    Args:
        script: of the job.
        tmp_path: gets `notes`, the words of each srun, `notes.env` and `told`, what SLURM was told.
        run_dir: of the run.
        workers: what the step of the workers does, in shell.
        fit: verdicts of the look at the nodes.
    """
    programs, here = tmp_path / "bin", tmp_path / "here"
    for folder in (programs, here, run_dir / "slurm"):
        folder.mkdir(parents=True, exist_ok=True)
    stub(programs, "squeue", "echo N/A")
    stub(
        programs, "scontrol",
        f'[[ $1 == show ]] && printf "node1\\nnode2\\n" || echo scontrol "$@" >>{shlex.quote(str(tmp_path))}/told',
    )  # fmt: skip
    stub(programs, "scancel", f'echo scancel "$@" >>{shlex.quote(str(tmp_path))}/told')
    stub(programs, "sleep", "exit 0")  # after a requeue SLURM ends the script
    stub(
        programs, "srun",
        'printf "%s\\0" "$@" >>"$NOTES"; printf "\\0" >>"$NOTES"; env -0 >"$NOTES.env"\n'
        f'case "$*" in *roberta_dist.train*) {workers};;\n'
        f'*) printf "{fit}" >"$RUN_DIR/logs/job_7.0/preflight.txt";; esac',
    )  # fmt: skip
    environ = {
        "PATH": f"{programs}:{os.environ['PATH']}", "NOTES": str(tmp_path / "notes"),
        "RUN_DIR": str(run_dir), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_CPUS_ON_NODE": "8", "HOME": str(here),
    }  # fmt: skip
    return subprocess.run(
        ["bash", "-s"], input=script, text=True, env=environ, cwd=here, capture_output=True
    )


def plain_run(tmp_path: Path, *words: str) -> tuple[PretrainConfig, Job]:
    """A run of two nodes, and its job, whose folder slurm/submit_000 is there."""
    run_dir = tmp_path / "run"
    config = replace(composed("cluster=slurm", "cluster.nodes=2", *words), run_dir=str(run_dir))
    submission = run_dir / "slurm" / "submit_000"
    return config, replace(job(config), config=submission / "config.yaml")


def told(tmp_path: Path) -> list[str]:
    path = tmp_path / "told"
    return path.read_text().splitlines() if path.is_file() else []


def test_a_trial_that_trained_nothing_went_well(tmp_path):
    config, own = plain_run(tmp_path, "train.dry_run=true")
    script = render(config, own, TEMPLATE)
    done = execute(script, tmp_path, tmp_path / "run", "true")
    assert done.returncode == 0 and "nothing was trained" in done.stdout, done.stdout + done.stderr
    other = tmp_path / "other"
    failed = execute(script.replace(str(tmp_path / "run"), str(other / "run")), other, other / "run", "false")  # fmt: skip
    assert failed.returncode == 1


@pytest.mark.parametrize(
    ("workers", "called_off"),
    [
        ('echo "{\\"step\\": 9999999}" >"$RUN_DIR/DONE"', True),
        ('echo 2 >"$RUN_DIR/logs/job_7.0/exit_code"; exit 1', True),
        ('echo none >"$RUN_DIR/slurm/submit_000/ended"; exit 1', True),
        ("exit 1", False),  # it goes back into the queue
    ],
)
def test_the_rest_of_a_chain_is_called_off_where_nothing_is_left_to_do(
    tmp_path, workers, called_off
):
    config, own = plain_run(tmp_path)
    own.config.parent.mkdir(parents=True)
    (own.config.parent / "chain").write_text("7\n8\n9\n")
    execute(render(config, own, TEMPLATE), tmp_path, tmp_path / "run", workers)
    assert ("scancel --state=PENDING 7 8 9" in told(tmp_path)) is called_off
    assert ("scontrol requeue 7" in told(tmp_path)) is not called_off


def test_nodes_that_were_excluded_stay_so_when_others_join_them(tmp_path):
    config, own = plain_run(tmp_path, "cluster.slurm.exclude=[node8,node9]")
    script = render(config, own, TEMPLATE)
    execute(script, tmp_path, tmp_path / "run", "true", fit="node1 fit\\nnode2 unfit it is\\n")
    assert "scontrol update JobId=7 ExcNodeList=node8,node9,node2" in told(tmp_path)


@pytest.mark.parametrize("transport", ["srun", "deepspeed"])
@pytest.mark.parametrize("container", ["none", "apptainer", "pyxis"])
def test_hostile_values_are_inert(tmp_path, transport, container):
    name = HOSTILE.replace(" ", "") if container == "pyxis" else HOSTILE  # which takes no blanks
    here, run_dir = tmp_path / "here", tmp_path / name
    base = composed("cluster=slurm", "cluster.nodes=2", "cluster.slurm.container_image=i",
                    f"cluster.slurm.transport={transport}", f"cluster.slurm.container={container}")  # fmt: skip
    slurm = replace(
        base.cluster.slurm,
        job_name=HOSTILE, account=HOSTILE, constraint=HOSTILE, extra=[f"--comment={HOSTILE}"],
        container_image=HOSTILE,
    )  # fmt: skip
    hostile = {"EVIL": HOSTILE + "\nsecond line; touch pwned"}
    cluster = replace(base.cluster, slurm=slurm, environment=hostile, interface=HOSTILE)
    config = replace(base, run_dir=str(run_dir), cluster=cluster)
    python = str(tmp_path / HOSTILE / "python")
    script = render(config, replace(job(config), python=python), TEMPLATE)
    done = execute(script, tmp_path, run_dir, 'echo "{\\"step\\": 9999999}" >"$RUN_DIR/DONE"')
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert not list(here.iterdir()) and not list(tmp_path.rglob("pwned"))
    steps = [words.split("\0") for words in (tmp_path / "notes").read_text().split("\0\0") if words]
    assert [("roberta_dist.train" in step) for step in steps] == [False, True]
    for step in steps:
        assert str(job(config).config) in step and python in step
    log = str(run_dir).replace("%", "%%")
    assert any(word.startswith(f"--output={log}/logs/job_7.0/") for word in steps[1])
    if container == "pyxis":
        assert f"--container-image={HOSTILE}" in steps[1]
    if container == "apptainer":
        assert HOSTILE in steps[1] and f"--bind={run_dir}:{run_dir}" in steps[1]
    seen = dict(
        pair.split("=", 1) for pair in (tmp_path / "notes.env").read_text().split("\0") if pair
    )
    assert seen["EVIL"] == hostile["EVIL"]
    assert seen["GLOO_SOCKET_IFNAME"] == HOSTILE
    assert seen["OMP_NUM_THREADS"] == "8" and seen["MASTER_ADDR"] == "node1"
    assert json.loads((run_dir / "DONE").read_text())
