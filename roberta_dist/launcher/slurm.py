"""`launch` on a SLURM cluster: one script is written, checked and submitted. What runs later is the
script's: launch/train.sbatch."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from roberta_dist.config.cluster import ClusterKind
from roberta_dist.config.quoting import quote_override
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.config.slurm import Container
from roberta_dist.launcher.corpus_jobs import corpus_jobs
from roberta_dist.launcher.machine import extensions_folder, template_file
from roberta_dist.launcher.sbatch import check_path, render
from roberta_dist.launcher.start import record_launch, say, write_config
from roberta_dist.launcher.steps import Job
from roberta_dist.launcher.submit import all_or_none, test_only, workers_and_gpus
from roberta_dist.runtime.files import atomic_write, storage_errors
from roberta_dist.runtime.remote_path import is_remote
from roberta_dist.runtime.rundir import RunPaths, next_folder, numbered


def describe_slurm(run: PretrainConfig, prepare_first: Sequence[str]) -> str:
    """The scripts that `launch_slurm` would submit.

    Raises:
        ConfigError, LaunchError: one cannot be written.
    """
    return "\n".join(script for script, _ in _scripts(run, prepare_first)).rstrip("\n")


def check_slurm(run: PretrainConfig, prepare_first: Sequence[str]) -> None:
    """Have SLURM, where there is one, look at the scripts without submitting them, and say its answer.

    Raises:
        ConfigError, LaunchError: as `launch_slurm`.
    """
    if shutil.which("sbatch"):
        answers = [test_only(script, *options) for script, options in _scripts(run, prepare_first)]
        say(answers[-1])


def _scripts(run: PretrainConfig, prepare_first: Sequence[str]) -> list[tuple[str, list[str]]]:
    """(script, options of sbatch) of every job, as they would be submitted."""
    paths, template = paths_and_template(run)
    job = job_of(run, numbered(paths.slurm, "submit_"))
    before = corpus_jobs(run, prepare_first, job) if prepare_first else []
    made = [(corpus_job.script, corpus_job.options) for corpus_job in before]
    return [*made, (render(run, job, template), [])]


def launch_slurm(run: PretrainConfig, prepare_first: Sequence[str]) -> int:
    """Submit `run` as a job, or a chain of them; before it the jobs that make its corpus.

    Args:
        run: with absolute paths.
        prepare_first: overrides of `prepare`; none if the corpus is there.

    Returns:
        0 once SLURM has the jobs.

    Raises:
        ConfigError: SLURM refuses a job.
        StorageError: the run folder cannot be written.
        LaunchError: SLURM's commands are missing or do not work.
    """
    paths, template = paths_and_template(run)
    for script, options in _scripts(run, prepare_first):
        test_only(script, *options)
    make_mounted(run)
    submission = write_submission(run, paths, template)
    before = corpus_jobs(run, prepare_first, job_of(run, submission)) if prepare_first else []
    with all_or_none() as submit:
        made: list[str] = []
        for corpus_job in before:
            path = submission / f"{corpus_job.name}.sbatch"
            atomic_write(path, corpus_job.script)
            waits = dependency(ok=made[-1:])
            made.append(submit(path, *corpus_job.options, *waits))
            name = corpus_job.log_name.replace("%A", made[-1]).replace("%a", "*")
            _record(paths, made[-1], corpus_job.name, name.replace("%j", made[-1]))
        chain: list[str] = []
        for _ in range(jobs_in_chain(run)):
            # the corpus is asked for by each: one whose predecessor was cancelled would start without
            waits = dependency(ok=made[-1:], ended=chain[-1:])
            chain.append(submit(submission / "submit.sbatch", *waits))
            _record(paths, chain[-1], "train", chain[-1])
        write_chain(submission, chain)
    word = quote_override("run_dir", str(paths.root))
    say(f"  look:  roberta-dist status {word}; roberta-dist logs {word}")
    say(f"  stop:  roberta-dist stop {word} saves first; launch again goes on from there")
    return 0


def jobs_in_chain(run: PretrainConfig) -> int:
    """Jobs that train, one after the other; a trial is one."""
    return 1 if run.train.dry_run else run.cluster.slurm.chain


def write_chain(submission: Path, jobs: Sequence[str]) -> None:
    """Tell the job script which jobs it may call off when there is nothing left for them to do."""
    if len(jobs) > 1:
        atomic_write(submission / "chain", "".join(f"{job}\n" for job in jobs))


def make_mounted(run: PretrainConfig) -> None:
    """Make the folders that a container mounts and nothing else would make before.

    Raises:
        StorageError: one cannot be made.
    """
    if run.cluster.slurm.container is Container.none:
        return
    for path in (*run.data.locations.values(), run.data.cache_dir):
        if path and not is_remote(path):
            with storage_errors(Path(path)):
                Path(path).mkdir(parents=True, exist_ok=True)


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


def dependency(ok: Sequence[str] = (), ended: Sequence[str] = ()) -> list[str]:
    """Options of a job that waits for others, and does not wait for ever if one of `ok` failed."""
    parts = [*(f"afterok:{job}" for job in ok), *(f"afterany:{job}" for job in ended)]
    return [f"--dependency={','.join(parts)}", "--kill-on-invalid-dep=yes"] if parts else []


def _record(paths: RunPaths, job: str, role: str, log_name: str) -> None:
    log = paths.slurm / f"{log_name}.out"
    record_launch(paths, ClusterKind.slurm, job_id=job, role=role)
    say(f"{paths.root}: job {job} ({role}), log {log}")


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
