"""`launch` on a SLURM cluster: one script is written, checked and submitted. What runs later is the
script's: launch/train.sbatch."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from roberta_dist.config.cluster import ClusterKind
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.config.slurm import Container
from roberta_dist.errors import ConfigError, LaunchError
from roberta_dist.launcher.corpus_jobs import corpus_jobs
from roberta_dist.launcher.machine import extensions_folder, template_file
from roberta_dist.launcher.sbatch import check_path, render
from roberta_dist.launcher.start import record_launch, say, write_config
from roberta_dist.launcher.steps import Job
from roberta_dist.runtime.files import atomic_write
from roberta_dist.runtime.rundir import RunPaths, next_folder, numbered

GPUS = re.compile(r"\bgpu(?::[^:(),]+)?:(\d+)")


def describe_slurm(run: PretrainConfig, prepare_first: Sequence[str]) -> str:
    """The scripts that `launch_slurm` would submit; what SLURM says of them goes to standard error.

    Raises:
        ConfigError, LaunchError: as `launch_slurm`.
    """
    paths, template = _paths_and_template(run)
    job = _job(run, numbered(paths.slurm, "submit_"))
    before = corpus_jobs(run, prepare_first, job) if prepare_first else []
    script = render(run, job, template)
    if shutil.which("sbatch"):
        for corpus_job in before:
            _test(corpus_job.script, *corpus_job.options)
        say(_test(script))
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
    paths, template = _paths_and_template(run)
    _refuse_second_job(paths)
    trial = _job(run, numbered(paths.slurm, "submit_"))
    before = corpus_jobs(run, prepare_first, trial) if prepare_first else []
    for corpus_job in before:
        _test(corpus_job.script, *corpus_job.options)
    _test(render(run, trial, template))
    submission = next_folder(paths.slurm, "submit_")
    script = render(run, _job(run, submission), template)
    write_config(run, paths, submission)
    for path in (submission / "submit.sbatch", paths.submit):
        atomic_write(path, script)
    # before a job can start: it would take an earlier STOP for its own
    paths.stop.unlink(missing_ok=True)
    last: list[str] = []
    for corpus_job in before:
        path = submission / f"{corpus_job.name}.sbatch"
        atomic_write(path, corpus_job.script)
        last = _after(
            "afterok", _submit_as(paths, corpus_job.name, path, *corpus_job.options, *last)
        )
    for _ in range(run.cluster.slurm.chain):
        last = _after("afterany", _submit_as(paths, "train", paths.submit, *last))
    name = shlex.quote(f"run_dir={paths.root}")
    say(f"  look:  roberta-dist status {name}; roberta-dist logs {name}")
    say(f"  stop:  roberta-dist stop {name} saves first; launch again goes on from there")
    return 0


def _after(how: str, job: str) -> list[str]:
    """Options of a job that waits for another, and does not wait for ever if that one failed."""
    return [f"--dependency={how}:{job}", "--kill-on-invalid-dep=yes"]


def _submit_as(paths: RunPaths, role: str, script: Path, *options: str) -> str:
    """Submit and record a job; its id."""
    job = _submit(script, *options)
    log = paths.slurm / f"{job}.out"
    record_launch(paths, ClusterKind.slurm, job_id=job, role=role, log=str(log))
    say(f"{paths.root}: job {job} ({role}), log {log}")
    return job


def _paths_and_template(run: PretrainConfig) -> tuple[RunPaths, str]:
    template = template_file("train.sbatch").read_text(encoding="utf-8")
    return RunPaths(Path(check_path(run.run_dir))), template


def _job(run: PretrainConfig, submission: Path) -> Job:
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


def workers_and_gpus(run: PretrainConfig) -> tuple[int, int]:
    """Workers and GPUs of a node: as asked, or as many as the partition's nodes have.

    Raises:
        ConfigError: neither is told, and the partition's nodes differ or cannot be asked for.
    """
    workers, gpus = run.cluster.workers_per_node, run.cluster.slurm.gpus_per_node
    if gpus is None:
        gpus = workers or _gpus_of(run.cluster.slurm.partition)
    return workers or gpus or 1, gpus


def _gpus_of(partition: str | None) -> int:
    remedy = "give cluster.slurm.gpus_per_node=N, 0 to train on processors"
    if not shutil.which("sinfo"):
        raise ConfigError("cluster.slurm.gpus_per_node: no sinfo here to ask", remedy)
    only = ["-p", partition] if partition else []
    counts = gpu_counts(_slurm("sinfo", "-h", "-o", "%P %G", *only), default_only=not partition)
    if len(counts) != 1:
        raise ConfigError(
            f"cluster.slurm.partition={partition}: its nodes have {sorted(counts)} GPUs", remedy
        )
    return counts.pop()


def gpu_counts(told: str, default_only: bool) -> set[int]:
    """GPUs of a partition's nodes, from `sinfo -o '%P %G'`; the default one's name ends in `*`.

    Example: `batch* gpu:h100:8(S:0-1)` → {8}; `batch* (null)` → {0}.
    """
    counts = set()
    for line in told.splitlines():
        name, _, resources = line.partition(" ")
        if name.endswith("*") or not default_only:
            counts.add(sum(int(count) for count in GPUS.findall(resources)))
    return counts


def _refuse_second_job(paths: RunPaths) -> None:
    """Two jobs would write one run folder."""
    if not paths.jobs.is_file():
        return
    lines = [json.loads(line) for line in paths.jobs.read_text().splitlines()]
    last = [(line["host"], line["pid"]) for line in lines[-1:]]
    for line in lines:
        if "job_id" not in line or (line["host"], line["pid"]) not in last:
            continue
        job = line["job_id"]
        done = _call(["squeue", "-h", "-j", job, "-o", "%T"])
        if done.returncode == 0 and done.stdout.strip():  # a job long gone is an error to squeue
            raise ConfigError(
                f"{paths.root}: job {job} of this run is {done.stdout.strip()}",
                f"wait for it, or `roberta-dist stop run_dir={paths.root}` first",
            )


def _test(script: str, *options: str) -> str:
    """SLURM's answer to the script, without submitting it."""
    done = _call(["sbatch", "--test-only", *options], script)
    answer = done.stderr.strip()
    if done.returncode:
        raise ConfigError(
            f"SLURM refuses the job: {answer}",
            "change the cluster.slurm keys; dry_run=true prints the script",
        )
    return answer


def _submit(script: Path, *options: str) -> str:
    """Job id of the submitted script."""
    done = _call(["sbatch", "--parsable", *options, str(script)])
    if done.returncode:
        raise LaunchError(f"sbatch: {done.stderr.strip()}", f"see {script}")
    return done.stdout.strip().partition(";")[0]


def _slurm(*command: str) -> str:
    done = _call(list(command))
    if done.returncode:
        raise LaunchError(f"{command[0]}: {done.stderr.strip()}", "is the cluster up?")
    return done.stdout


def _call(command: list[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    """The one place that starts SLURM's commands."""
    if not shutil.which(command[0]):
        raise LaunchError(
            f"{command[0]} is not on PATH",
            "launch where jobs are submitted from, or look at the script with dry_run=true",
        )
    return subprocess.run(
        command, input=text, env=submission_environment(os.environ), capture_output=True, text=True
    )


def submission_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Ours, which the job gets too, secrets included; without what describes a job that we are in."""
    if "SLURM_JOB_ID" not in environ:
        return dict(environ)
    kept = ("SLURM_CONF", "SLURM_CLUSTERS")
    inherited = re.compile(r"SLURM_|SLURMD_|SRUN_|SBATCH_")
    return {k: v for k, v in environ.items() if k in kept or not inherited.match(k)}
