"""`prepare_first`: the corpus is made before the run, here or as jobs of SLURM. Text and words only."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from roberta_dist.config.load import compose
from roberta_dist.config.prepare import Phase
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
    def options(self) -> list[str]:
        """What sbatch is told beside the script."""
        if self.tasks == 1:
            return []
        limit = f"%{self.at_once}" if self.at_once else ""
        return [f"--array=0-{self.tasks - 1}{limit}"]


PHASES = ((Phase.read,), (Phase.tokenizer, Phase.join), (Phase.encode,), (Phase.merge,))
"""Phases of each job, in order (`prepare` says which need which)."""


def prepare_words(run: PretrainConfig, overrides: Sequence[str]) -> list[str]:
    """Arguments of `roberta-dist prepare` for the corpus of `run`.

    Raises:
        ConfigError: the run reads several corpora or a remote one, or `overrides` name the output.
    """
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
    escaped = run.data.path.replace("\\", "\\\\").replace("'", "\\'")
    return [*overrides, f"output='{escaped}'", "progress=false"]


def corpus_jobs(run: PretrainConfig, overrides: Sequence[str], job: Job) -> list[CorpusJob]:
    """The jobs that make the corpus of `run`.

    Args:
        run: with absolute paths.
        overrides: of `prepare`; `prepare.tasks` is the size of the arrays.
        job: of the training; its interpreter is used.

    Raises:
        ConfigError: the overrides do not compose.
    """
    words = prepare_words(run, overrides)
    config = compose("prepare", PrepareConfig, [*words, f"prepare.phase={Phase.read.value}"])
    alone = [word for word in words if not word.startswith("prepare.tasks=")]
    tasks = config.prepare.tasks
    made = []
    for phases in PHASES:
        shared = phases[0].shared and tasks > 1
        own = words if phases[0].shared else alone
        script = _script(run, job, own, phases, shared)
        name = "+".join(phase.value for phase in phases)
        at_once = run.cluster.slurm.prepare.at_once
        made.append(CorpusJob(name, tasks if shared else 1, at_once, script))
    return made


def _script(
    run: PretrainConfig, job: Job, words: Sequence[str], phases: Sequence[Phase], shared: bool
) -> str:
    slurm, wanted = run.cluster.slurm, run.cluster.slurm.prepare
    name = slurm.job_name or run.run_dir.rsplit("/", 1)[-1]
    single = replace(
        slurm,
        job_name=f"{name}: {phases[0].value}",
        partition=wanted.partition or slurm.partition,
        time=wanted.time,
        cpus_per_task=wanted.cpus_per_task,
        memory=wanted.memory,
        exclusive=False,
        spare_nodes=0,
        signal_lead_s=0,
        gpu_type=None,
    )
    one = replace(run, cluster=replace(run.cluster, nodes=1, slurm=single))
    task = Job(job.config, workers=1, gpus=0, python=job.python)
    number = ['prepare.task="$SLURM_ARRAY_TASK_ID"'] if shared else []
    lines = ["#!/bin/bash", *directives(one, task), "", "set -euo pipefail", ""]
    lines += [f"run={shlex.quote(run.run_dir)}"]
    lines += ['[[ ! -e $run/STOP ]] || { echo "the run was stopped" >&2; exit 1; }']
    lines += [*slurm.prologue, ""]
    for phase in phases:
        command = f"{shlex.quote(job.python)} -m roberta_dist.cli prepare"
        arguments = [*map(shlex.quote, words), f"prepare.phase={phase.value}", *number]
        step = [*command_step(one, task), command, *arguments]
        lines.append(" \\\n    ".join(step))
    return "\n".join(lines) + "\n"
