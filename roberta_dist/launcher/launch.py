"""`launch`: one command that starts or resumes a run, whatever the cluster."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from roberta_dist.config.cluster import ClusterKind
from roberta_dist.config.quoting import quote_override
from roberta_dist.config.roots import LaunchConfig, PretrainConfig
from roberta_dist.errors import INTERRUPTED, ConfigError, LaunchError
from roberta_dist.launcher.attempts import watch
from roberta_dist.launcher.corpus_jobs import prepare_words
from roberta_dist.launcher.hosts import describe_hosts, launch_hosts
from roberta_dist.launcher.local import describe_local, launch_local
from roberta_dist.launcher.processes import ProcessGroup
from roberta_dist.launcher.slurm import check_slurm, describe_slurm, launch_slurm
from roberta_dist.launcher.start import check_corpus, record_launch, say, with_absolute_paths
from roberta_dist.launcher.status import going_on
from roberta_dist.runtime.parent import LAUNCHER_VARIABLE
from roberta_dist.runtime.rundir import RunPaths, is_done

ORPHANS_S = 20.0
"""Seconds for workers to end after their launcher was killed; a worker looks every second."""


def launch(config: LaunchConfig) -> int:
    """Start or resume `config.run_dir` where `config.cluster` says.

    Returns:
        0 for done (also if it was before), for stopped on request (REQUEUE is left) and for
        submitted; otherwise what the workers said.

    Raises:
        ConfigError: the corpus is missing, the run goes on already, or the cluster cannot be what
            was asked for.
        StorageError: the run folder cannot be written.
        LaunchError: the workers could not be started, or ended without a word.
    """
    run = ready(config)
    if run is None:
        return 0
    if config.dry_run:
        with suppress(BrokenPipeError):
            print(_describe(run, config.prepare_first), flush=True)
        if run.cluster.kind is ClusterKind.slurm:
            check_slurm(run, config.prepare_first)
        return 0
    if config.prepare_first and run.cluster.kind is not ClusterKind.slurm:
        _describe(run, config.prepare_first)  # what cannot be started is told before hours of work
        if code := _prepare_here(run, config.prepare_first):
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
        ConfigError: the corpus is missing, or the run goes on already.
    """
    run = with_absolute_paths(config.run)
    if is_done(RunPaths(Path(run.run_dir)), run.schedule.max_steps):
        say(f"{run.run_dir}: already complete")
        return None
    if not config.prepare_first:
        for path in run.data.locations.values():
            check_corpus(path)
    if not config.dry_run:
        _refuse_second(RunPaths(Path(run.run_dir)))
    return run


def _refuse_second(paths: RunPaths) -> None:
    """Two worlds would write one run folder.

    Workers whose launcher was killed are given the time to notice.
    """
    deadline = time.monotonic() + ORPHANS_S
    while proofs := going_on(paths):
        if time.monotonic() > deadline or not all("a worker" in proof for proof in proofs):
            raise ConfigError(
                f"{paths.root}: {proofs[0]}",
                f"wait for it, or `roberta-dist stop {quote_override('run_dir', str(paths.root))}`",
            )
        time.sleep(0.5)


def _prepare_here(run: PretrainConfig, prepare_first: Sequence[str]) -> int:
    """Prepare in a process of its own, which ends with this one; its exit code."""
    record_launch(RunPaths(Path(run.run_dir)), run.cluster.kind)
    words = prepare_words(run, prepare_first)
    command = [sys.executable, "-m", "roberta_dist.cli", "prepare", *words]
    group = ProcessGroup(command, os.environ | {LAUNCHER_VARIABLE: str(os.getpid())})
    ended = watch(lambda: group, Path(os.devnull) / "nothing tells before the end")
    if ended.interrupted:
        return INTERRUPTED
    code = int(group.leader.returncode)
    return code if code >= 0 else LaunchError.exit_code


def _describe(run: PretrainConfig, prepare_first: Sequence[str]) -> str:
    """What `launch` would start or submit, for `dry_run=true`."""
    if run.cluster.kind is ClusterKind.slurm:
        return describe_slurm(run, prepare_first)
    words = prepare_words(run, prepare_first) if prepare_first else []
    before = f"first: {shlex.join(['roberta-dist', 'prepare', *words])}\n" if words else ""
    describe = describe_local if run.cluster.kind is ClusterKind.local else describe_hosts
    return before + describe(run)
