"""`prepare_first`: the corpus is made before the run, here or as jobs of SLURM. Text and words only."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from roberta_dist.config.load import compose
from roberta_dist.config.prepare import Phase
from roberta_dist.config.quoting import quote_value
from roberta_dist.config.roots import PrepareConfig, PretrainConfig
from roberta_dist.errors import ConfigError
from roberta_dist.launcher.sbatch import directives
from roberta_dist.launcher.steps import Job, command_step
from roberta_dist.runtime.remote_path import is_remote


@dataclass(frozen=True)
class CorpusJob:
    """One job of preparing; each waits for the one before it.

    Attributes:
        name: the phases it does, joined by `+`.
        tasks: how many tasks share it.
        at_once: most of them at the same time; 0 for all.
        script: text for sbatch.
    """

    name: str
    tasks: int
    at_once: int
    script: str

    @property
    def log_name(self) -> str:
        """Of the job's log, in SLURM's words, without `.out`."""
        return "%j" if self.tasks == 1 else "%A_%a"

    @property
    def options(self) -> list[str]:
        """What sbatch is told beside the script."""
        if self.tasks == 1:
            return []
        limit = f"%{self.at_once}" if self.at_once else ""
        return [f"--array=0-{self.tasks - 1}{limit}"]


PHASES = ((Phase.read,), (Phase.tokenizer, Phase.join), (Phase.encode,), (Phase.merge,))
"""Phases of each job, in order (`prepare` says which need which)."""


def prepare_words(run: PretrainConfig, overrides: Sequence[str]) -> list[str]:
    """Arguments of `roberta-dist prepare` for the corpus of `run`, done by one command.

    Raises:
        ConfigError: the run reads several corpora or a remote one, or `overrides` name the output or
            do not compose.
    """
    words = _words(run, overrides)[1]
    compose("prepare", PrepareConfig, words)
    return words


def _words(run: PretrainConfig, overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments of `roberta-dist prepare` for the corpus of `run`: with prepare.tasks, and without."""
    if run.data.corpora or is_remote(run.data.path):
        raise ConfigError(
            "prepare_first: the run reads several corpora, or one that is not on a file system",
            "prepare them by `roberta-dist prepare` before",
        )
    for word in overrides:
        if word.lstrip("+~").split("=")[0] in ("output", "prepare.phase", "prepare.task"):
            raise ConfigError(
                f"prepare_first: {word}: the corpus goes to data.path, phase by phase",
                "leave it out",
            )
    words = [*overrides, f"output={quote_value(run.data.path)}", "progress=false"]
    return words, [word for word in words if not word.startswith("prepare.tasks=")]


def corpus_jobs(run: PretrainConfig, overrides: Sequence[str], job: Job) -> list[CorpusJob]:
    """The jobs that make the corpus of `run`.

    Args:
        run: with absolute paths.
        overrides: of `prepare`; `prepare.tasks` is the size of the arrays.
        job: of the training; its interpreter is used.

    Raises:
        ConfigError: the overrides do not compose.
    """
    words, alone = _words(run, overrides)
    config = compose("prepare", PrepareConfig, [*words, f"prepare.phase={Phase.read.value}"])
    reads = [*config.corpus.paths, *([config.tokenizer.path] if config.tokenizer.path else [])]
    tasks = config.prepare.tasks
    made = []
    for phases in PHASES:
        shared = phases[0].shared and tasks > 1
        own = words if phases[0].shared else alone
        script = _script(run, job, own, phases, shared, reads)
        name = "+".join(phase.value for phase in phases)
        at_once = run.cluster.slurm.prepare.at_once
        made.append(CorpusJob(name, tasks if shared else 1, at_once, script))
    return made


def _script(
    run: PretrainConfig,
    job: Job,
    words: Sequence[str],
    phases: Sequence[Phase],
    shared: bool,
    reads: Sequence[str],
) -> str:
    slurm, wanted = run.cluster.slurm, run.cluster.slurm.prepare
    name = slurm.job_name or run.run_dir.rsplit("/", 1)[-1]
    # what describes the nodes of the training says nothing of these
    single = replace(
        slurm,
        job_name=f"{name}: {phases[0].value}",
        partition=wanted.partition or slurm.partition,
        time=wanted.time,
        cpus_per_task=wanted.cpus_per_task,
        memory=wanted.memory,
        extra=wanted.extra,
        constraint=None,
        reservation=None,
        exclusive=False,
        spare_nodes=0,
        signal_lead_s=0,
        gpu_type=None,
    )
    one = replace(run, cluster=replace(run.cluster, nodes=1, slurm=single))
    task = Job(job.config, workers=1, gpus=0, python=job.python)
    number = ['prepare.task="$SLURM_ARRAY_TASK_ID"'] if shared else []
    log_name = "%A_%a" if shared else "%j"
    lines = ["#!/bin/bash", *directives(one, task, log_name), "", "set -euo pipefail", ""]
    lines += [f"run={shlex.quote(run.run_dir)}"]
    lines += ['[[ ! -e $run/STOP ]] || { echo "the run was stopped" >&2; exit 1; }']
    if slurm.prologue:
        lines += ["set +eu # scripts of modules and conda are not written for it"]
        lines += [*slurm.prologue, "set -eu"]
    variables = run.cluster.environment or {}
    lines += [f"export {key}={shlex.quote(value)}" for key, value in variables.items()]
    lines += [""]
    for phase in phases:
        command = f"{shlex.quote(job.python)} -m roberta_dist.cli prepare"
        arguments = [*map(shlex.quote, words), f"prepare.phase={phase.value}", *number]
        step = [*command_step(one, task, _mounted(reads)), command, *arguments]
        lines.append(" \\\n    ".join(step))
    return "\n".join(lines) + "\n"


def _mounted(paths: Sequence[str]) -> list[str]:
    """Of what is read, absolute paths; of a pattern the folder above its first wildcard."""
    local = [Path(path).parts for path in paths if path.startswith("/")]
    return [
        str(Path(*takewhile(lambda part: not set(part) & set("*?["), parts))) for parts in local
    ]
