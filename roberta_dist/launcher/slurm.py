"""`launch` on a SLURM cluster: one script is written, checked and submitted. What runs later is the
script's: launch/train.sbatch."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from roberta_dist.config.cluster import ClusterKind
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.config.slurm import Container
from roberta_dist.errors import ConfigError
from roberta_dist.launcher.corpus_jobs import corpus_jobs
from roberta_dist.launcher.machine import extensions_folder, template_file
from roberta_dist.launcher.sbatch import check_path, render
from roberta_dist.launcher.start import record_launch, say, write_config
from roberta_dist.launcher.steps import Job
from roberta_dist.launcher.submit import call, submit, test_only, workers_and_gpus
from roberta_dist.runtime.files import atomic_write
from roberta_dist.runtime.rundir import RunPaths, next_folder, numbered


def describe_slurm(run: PretrainConfig, prepare_first: Sequence[str]) -> str:
    """The scripts that `launch_slurm` would submit; what SLURM says of them goes to standard error.

    Raises:
        ConfigError, LaunchError: as `launch_slurm`.
    """
    paths, template = paths_and_template(run)
    job = job_of(run, numbered(paths.slurm, "submit_"))
    before = corpus_jobs(run, prepare_first, job) if prepare_first else []
    script = render(run, job, template)
    if shutil.which("sbatch"):
        for corpus_job in before:
            test_only(corpus_job.script, *corpus_job.options)
        say(test_only(script))
    return "\n".join([*(made.script for made in before), script]).rstrip("\n")


def launch_slurm(run: PretrainConfig, prepare_first: Sequence[str]) -> int:
    """Submit `run` as a job, or a chain of them; before it the jobs that make its corpus.

    Args:
        run: with absolute paths.
        prepare_first: overrides of `prepare`; none if the corpus is there.

    Returns:
        0 once SLURM has the jobs.

    Raises:
        ConfigError: SLURM refuses a job, or one of this run is in its queue already.
        StorageError: the run folder cannot be written.
        LaunchError: SLURM's commands are missing or do not work.
    """
    paths, template = paths_and_template(run)
    refuse_second_job(paths)
    trial = job_of(run, numbered(paths.slurm, "submit_"))
    before = corpus_jobs(run, prepare_first, trial) if prepare_first else []
    for corpus_job in before:
        test_only(corpus_job.script, *corpus_job.options)
    test_only(render(run, trial, template))
    submission = write_submission(run, paths, template)
    last: list[str] = []
    for corpus_job in before:
        path = submission / f"{corpus_job.name}.sbatch"
        atomic_write(path, corpus_job.script)
        last = after(
            "afterok", _submit_as(paths, corpus_job.name, path, *corpus_job.options, *last)
        )
    for _ in range(run.cluster.slurm.chain):
        last = after("afterany", _submit_as(paths, "train", submission / "submit.sbatch", *last))
    name = shlex.quote(f"run_dir={paths.root}")
    say(f"  look:  roberta-dist status {name}; roberta-dist logs {name}")
    say(f"  stop:  roberta-dist stop {name} saves first; launch again goes on from there")
    return 0


def write_submission(run: PretrainConfig, paths: RunPaths, template: str) -> Path:
    """Folder slurm/submit_NNN with what a job is made of; an earlier STOP is over.

    Raises:
        StorageError: the run folder cannot be written.
    """
    submission = next_folder(paths.slurm, "submit_")
    script = render(run, job_of(run, submission), template)
    write_config(run, paths, submission)
    for path in (submission / "submit.sbatch", paths.submit):
        atomic_write(path, script)
    # before a job can start: it would take an earlier STOP for its own
    paths.stop.unlink(missing_ok=True)
    return submission


def after(how: str, job: str) -> list[str]:
    """Options of a job that waits for another, and does not wait for ever if that one failed."""
    return [f"--dependency={how}:{job}", "--kill-on-invalid-dep=yes"]


def _submit_as(paths: RunPaths, role: str, script: Path, *options: str) -> str:
    """Submit and record a job; its id."""
    job = submit(script, *options)
    log = paths.slurm / f"{job}.out"
    record_launch(paths, ClusterKind.slurm, job_id=job, role=role, log=str(log))
    say(f"{paths.root}: job {job} ({role}), log {log}")
    return job


def paths_and_template(run: PretrainConfig) -> tuple[RunPaths, str]:
    """Of the run folder, and the text of launch/train.sbatch.

    Raises:
        ConfigError: a job's log cannot lie there.
    """
    template = template_file("train.sbatch").read_text(encoding="utf-8")
    return RunPaths(Path(check_path(run.run_dir))), template


def job_of(run: PretrainConfig, submission: Path) -> Job:
    """What the script of a run needs to know; `submission` is to hold its configuration.

    Raises:
        ConfigError, LaunchError: nobody tells how many GPUs its nodes have.
    """
    slurm = run.cluster.slurm
    workers, gpus = workers_and_gpus(run)
    own = slurm.python is None and slurm.container is Container.none
    return Job(
        config=submission / "config.yaml",
        workers=workers,
        gpus=gpus,
        python=slurm.python or (sys.executable if own else "python3"),
        extensions=extensions_folder(os.environ) if own else None,
    )


def refuse_second_job(paths: RunPaths) -> None:
    """Two jobs would write one run folder.

    Raises:
        ConfigError: a job of the newest launch waits or runs.
    """
    if not paths.jobs.is_file():
        return
    lines = [json.loads(line) for line in paths.jobs.read_text().splitlines()]
    last = [(line["host"], line["pid"]) for line in lines[-1:]]
    for line in lines:
        if "job_id" not in line or (line["host"], line["pid"]) not in last:
            continue
        job = line["job_id"]
        done = call(["squeue", "-h", "-j", job, "-o", "%T"])
        if done.returncode == 0 and done.stdout.strip():  # a job long gone is an error to squeue
            raise ConfigError(
                f"{paths.root}: job {job} of this run is {done.stdout.strip()}",
                f"wait for it, or `roberta-dist stop run_dir={paths.root}` first",
            )
