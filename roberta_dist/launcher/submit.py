"""SLURM as `launch` needs it: what the nodes have, whether a script is fit, and the submission."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from roberta_dist.config.roots import PretrainConfig
from roberta_dist.errors import ConfigError, LaunchError
from roberta_dist.launcher.start import say

GPUS = re.compile(r"\bgpu(?::[^:(),]+)?:(\d+)")


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


UNREACHABLE = "Unable to contact slurm controller"


@contextmanager
def all_or_none() -> Iterator[Callable[..., str]]:
    """Jobs of one command: gives what submits one; where the block fails none stays in the queue."""
    jobs: list[str] = []

    def add(script: Path, *options: str) -> str:
        jobs.append(submit(script, *options))
        return jobs[-1]

    try:
        yield add
    except BaseException:
        if jobs:
            call(["scancel", *jobs])
            say(f"jobs {', '.join(jobs)} were taken back")
        raise


def test_only(script: str, *options: str) -> str:
    """SLURM's answer to the script, without submitting it.

    Raises:
        ConfigError: it refuses the job.
        LaunchError: it does not answer.
    """
    done = call(["sbatch", "--test-only", *options], script)
    answer = done.stderr.strip()
    if UNREACHABLE in answer:
        raise LaunchError(f"sbatch: {answer}", "see whether the cluster answers (`sinfo`)")
    if done.returncode:
        raise ConfigError(
            f"SLURM refuses the job: {answer}",
            "change the cluster.slurm keys; dry_run=true prints the script",
        )
    return answer


def submit(script: Path, *options: str) -> str:
    """Job id of the submitted script."""
    done = call(["sbatch", "--parsable", *options, str(script)])
    if done.returncode:
        raise LaunchError(f"sbatch: {done.stderr.strip()}", f"see {script}")
    return done.stdout.strip().partition(";")[0]


def _slurm(*command: str) -> str:
    done = call(list(command))
    if done.returncode:
        raise LaunchError(f"{command[0]}: {done.stderr.strip()}", "is the cluster up?")
    return done.stdout


def call(command: list[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    """The one place that submits."""
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
