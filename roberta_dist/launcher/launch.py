"""`launch`: one command that starts or resumes a run, whatever the cluster."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from roberta_dist.config.cluster import ClusterKind
from roberta_dist.config.roots import LaunchConfig, PretrainConfig
from roberta_dist.launcher.corpus_jobs import prepare_words
from roberta_dist.launcher.hosts import describe_hosts, launch_hosts
from roberta_dist.launcher.local import describe_local, launch_local
from roberta_dist.launcher.slurm import describe_slurm, launch_slurm
from roberta_dist.launcher.start import check_corpus, say, with_absolute_paths
from roberta_dist.runtime.rundir import RunPaths, is_done


def launch(config: LaunchConfig) -> int:
    """Start or resume `config.run_dir` where `config.cluster` says.

    Returns:
        0 for done (also if it was before), for stopped on request (REQUEUE is left) and for
        submitted; otherwise what the workers said.

    Raises:
        ConfigError: the corpus is missing, or the cluster cannot be what was asked for.
        StorageError: the run folder cannot be written.
        LaunchError: the workers could not be started, or ended without a word.
    """
    run = ready(config)
    if run is None:
        return 0
    if config.dry_run:
        print(_describe(run, config.prepare_first))
        return 0
    if config.prepare_first and run.cluster.kind is not ClusterKind.slurm:
        words = prepare_words(run, config.prepare_first)
        code = subprocess.run(
            [sys.executable, "-m", "roberta_dist.cli", "prepare", *words]
        ).returncode
        if code:
            return code
    match run.cluster.kind:
        case ClusterKind.local:
            return launch_local(run)
        case ClusterKind.hostfile:
            return launch_hosts(run)
        case ClusterKind.slurm:
            return launch_slurm(run, config.prepare_first)


def ready(config: LaunchConfig) -> PretrainConfig | None:
    """The run with absolute paths; None if it is complete already.

    Raises:
        ConfigError: the corpus is missing.
    """
    run = with_absolute_paths(config.run)
    if is_done(RunPaths(Path(run.run_dir)), run.schedule.max_steps):
        say(f"{run.run_dir}: already complete")
        return None
    if not config.prepare_first:
        for path in run.data.locations.values():
            check_corpus(path)
    return run


def _describe(run: PretrainConfig, prepare_first: Sequence[str]) -> str:
    """What `launch` would start or submit, for `dry_run=true`."""
    match run.cluster.kind:
        case ClusterKind.local:
            return describe_local(run)
        case ClusterKind.hostfile:
            return describe_hosts(run)
        case ClusterKind.slurm:
            return describe_slurm(run, prepare_first)
