"""`launch` on this machine: its workers through DeepSpeed's launcher."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from roberta_dist.config.roots import PretrainConfig
from roberta_dist.launcher.attempts import Ended, run_attempts, watch
from roberta_dist.launcher.command import (
    RENDEZVOUS_HOST,
    node_command,
    worker_count,
    worker_environment,
)
from roberta_dist.launcher.describe import describe_start
from roberta_dist.launcher.machine import (
    available_cores,
    check_numactl,
    clear_stale_locks,
    extensions_folder,
    find_devices,
    free_port,
    worker_script,
)
from roberta_dist.launcher.outcome import outcome
from roberta_dist.launcher.processes import ProcessGroup
from roberta_dist.launcher.start import record_launch, say, write_config
from roberta_dist.runtime.rundir import RunPaths, next_attempt


def launch_local(config: PretrainConfig) -> int:
    """Start or resume `config.run_dir` with `config.cluster` and wait for the end.

    Args:
        config: with absolute paths.

    Returns:
        0 for done and for stopped on request (REQUEUE is left); 2 to 5 as the workers said; 130 if
        an interruption left nothing to go on from.

    Raises:
        ConfigError: there are fewer accelerators than workers, or no numactl to bind cores with.
        StorageError: the run folder cannot be written.
        LaunchError: the workers ended without a word.
    """
    paths = RunPaths(Path(config.run_dir))
    devices, workers = _world(config)
    record_launch(paths, config.cluster.kind)

    def attempt(restart: int) -> tuple[int, bool]:
        fewer = restart if config.cluster.shrink else 0
        return _attempt(config, paths, devices, max(1, workers - fewer))

    return run_attempts(config.cluster, paths, attempt)


def describe_local(config: PretrainConfig) -> str:
    """What `launch_local` would start, for people.

    Raises:
        ConfigError: as `launch_local`.
    """
    devices, workers = _world(config)
    resolved = RunPaths(Path(config.run_dir)).logs / "attempt_NNN" / "config.yaml"
    port = config.cluster.master_port or "PORT"
    command = _command(config, devices, workers, port, resolved)
    environ = _environment(config, "attempt_NNN", workers, bool(devices))
    return f"this machine: {workers} worker(s)\n" + describe_start(command, os.environ, environ)


def _world(config: PretrainConfig) -> tuple[list[int], int]:
    """(accelerators, workers) that the cluster asks for and this machine has."""
    if config.cluster.bind_cores:
        check_numactl()
    devices = find_devices(_given(config))
    return devices, worker_count(config.cluster.workers_per_node, devices)


def _attempt(
    config: PretrainConfig, paths: RunPaths, devices: list[int], workers: int
) -> tuple[int, bool]:
    """One world, from its start to its end: (exit code, whether a signal came)."""
    attempt = next_attempt(paths)
    resolved = write_config(config, paths, attempt)
    # it told how the last attempt ended; this one speaks for itself
    paths.requeue.unlink(missing_ok=True)
    port = config.cluster.master_port or free_port()
    command = _command(config, devices, workers, port, resolved)
    extensions = extensions_folder(_given(config))
    for lock in clear_stale_locks(extensions) if extensions else ():
        say(f"removed {lock}: left by a killed build")
    environ = _environment(config, attempt.name, workers, bool(devices))
    say(f"{paths.root}: {attempt.name}, {workers} worker(s); Ctrl-C saves and stops")
    ended = run_group(command, environ, attempt / "exit_code")
    return outcome(config, paths, attempt, ended), ended.interrupted


def _command(
    config: PretrainConfig, devices: list[int], workers: int, port: int | str, resolved: Path
) -> list[str]:
    return node_command(
        sys.executable,
        {"localhost": list((devices or range(workers))[:workers])},
        0,
        RENDEZVOUS_HOST,
        port,
        config.cluster.bind_cores,
        worker_script(),
        resolved,
    )


def _environment(
    config: PretrainConfig, attempt: str, workers: int, accelerated: bool
) -> dict[str, str]:
    without = not accelerated and not Path("/dev/kfd").exists()
    environ = worker_environment(
        _given(config),
        sys.executable,
        attempt,
        os.getpid(),
        config.cluster.threads_per_worker or max(1, available_cores() // workers),
        extensions_folder(_given(config)),
        without_accelerator=without,
        interface=config.cluster.interface,
        gloo_interface="lo" if without else None,
    )
    return environ | (config.cluster.environment or {})


def _given(config: PretrainConfig) -> dict[str, str]:
    """Our environment with what was asked for."""
    return os.environ | (config.cluster.environment or {})


def run_group(command: list[str], environ: Mapping[str, str], told: Path) -> Ended:
    """Run `command` to its end and leave no process of it behind; see `watch`."""
    return watch(lambda: ProcessGroup(command, environ), told)
