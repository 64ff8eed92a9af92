"""`launch` on this machine: attempts at a run through the `deepspeed` launcher.

Exit codes that pass through DeepSpeed's launcher carry no intent. What counts is what the workers
leave: DONE, REQUEUE, or `exit_code` in the attempt's folder.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from roberta_dist.config.roots import PretrainConfig
from roberta_dist.errors import HangError, LaunchError, StorageError
from roberta_dist.launcher.command import deepspeed_command, worker_count, worker_environment
from roberta_dist.launcher.machine import (
    available_cores,
    clear_stale_locks,
    extensions_folder,
    find_devices,
    free_port,
    worker_script,
)
from roberta_dist.launcher.processes import Interrupts, ProcessGroup
from roberta_dist.launcher.restarts import Restarts
from roberta_dist.launcher.start import record_launch, say, write_config
from roberta_dist.runtime.files import atomic_write
from roberta_dist.runtime.rundir import RunPaths, complete_steps, is_done, next_attempt

POLL_S = 0.2
GRACE_S = 10.0
LAST_WORD_S = 5.0
INTERRUPTED = 130
MEANINGS = {2: "configuration", 3: "data fault", 4: "non-finite numbers", 5: "hang"}


def launch_local(config: PretrainConfig) -> int:
    """Start or resume `config.run_dir` with `config.cluster` and wait for the end.

    A world of which a rank died or hung is started again, `cluster.restarts` times in a row without
    a new checkpoint, unless `stop` left STOP.

    Args:
        config: with absolute paths.

    Returns:
        0 for done and for stopped on request (REQUEUE is left); 2 to 5 as the workers said; 130 if
        an interruption left nothing to go on from.

    Raises:
        ConfigError: there are fewer accelerators than workers.
        StorageError: the run folder cannot be written.
        LaunchError: the workers ended without a word.
    """
    paths = RunPaths(Path(config.run_dir))
    devices = find_devices(os.environ)
    workers = worker_count(config.cluster.workers_per_node, devices)
    restarts = Restarts(config.cluster)
    record_launch(paths, config.cluster.kind)
    while True:
        before = complete_steps(paths.checkpoints)
        failure: LaunchError | None = None
        try:
            code, interrupted = _attempt(config, paths, devices, workers)
        except LaunchError as error:
            failure, code, interrupted = error, error.exit_code, False
        if interrupted or code not in (LaunchError.exit_code, HangError.exit_code):
            return code
        delay = restarts.delay(progress=complete_steps(paths.checkpoints) != before)
        if delay is None or paths.stop.is_file():
            if failure is not None:
                raise failure
            return code
        if config.cluster.shrink:
            workers = max(1, workers - 1)
        reason = failure.problem if failure else f"{paths.root}: a rank hung"
        say(f"{reason}; starting {workers} worker(s) again in {delay:g} s")
        if not _wait(delay, paths.stop):
            return INTERRUPTED


def _attempt(
    config: PretrainConfig, paths: RunPaths, devices: list[int], workers: int
) -> tuple[int, bool]:
    """One world, from its start to its end: (exit code, whether a signal came)."""
    attempt = next_attempt(paths)
    resolved = write_config(config, paths, attempt)
    # it told how the last attempt ended; this one speaks for itself
    paths.requeue.unlink(missing_ok=True)
    command = deepspeed_command(
        sys.executable,
        devices,
        workers,
        config.cluster.master_port or free_port(),
        worker_script(),
        resolved,
    )
    environ = _environment(config, attempt, workers, bool(devices))
    say(f"{paths.root}: {attempt.name}, {workers} worker(s); Ctrl-C saves and stops")
    code, interrupted = run_group(command, environ, attempt / "exit_code")
    return outcome(config, paths, attempt, code, interrupted), interrupted


def _wait(seconds: float, stop: Path) -> bool:
    """False if a signal came meanwhile, or the file `stop`."""
    with Interrupts() as interrupts:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not (interrupts.count or stop.is_file()):
            time.sleep(POLL_S)
        return not (interrupts.count or stop.is_file())


def _environment(
    config: PretrainConfig, attempt: Path, workers: int, accelerated: bool
) -> dict[str, str]:
    extensions = extensions_folder(os.environ)
    for lock in clear_stale_locks(extensions) if extensions else ():
        say(f"removed {lock}: left by a killed build")
    return worker_environment(
        os.environ,
        sys.executable,
        attempt.name,
        os.getpid(),
        config.cluster.threads_per_worker or max(1, available_cores() // workers),
        extensions,
        without_accelerator=not accelerated and not Path("/dev/kfd").exists(),
    )


def run_group(command: list[str], environ: Mapping[str, str], told: Path) -> tuple[int, bool]:
    """Run `command` to its end and leave no process of it behind.

    The first signal asks the workers to save and stop, the second ends them. Once a worker has left
    the file `told`, the others have LAST_WORD_S: DeepSpeed's launcher would wait half a minute for
    one that stands still.

    Returns:
        (exit code of the command, whether a signal came).
    """
    with Interrupts() as interrupts:
        group = ProcessGroup(command, environ)
        answered, patience = 0, LAST_WORD_S
        try:
            while not group.wait(POLL_S):
                patience -= POLL_S if told.exists() else 0.0
                if patience <= 0:
                    break
                if interrupts.count > answered:
                    answered = interrupts.count
                    _answer(group, answered)
        finally:
            left = group.end(GRACE_S if patience > 0 else 1.0)
        if left and not answered and patience > 0:
            say(f"ended {left} process(es) that outlived the DeepSpeed launcher")
        return group.leader.returncode, bool(interrupts.count)


def _answer(group: ProcessGroup, count: int) -> None:
    if count == 1 and group.ask_workers_to_stop():
        say("stopping: the workers save a checkpoint; a second Ctrl-C ends them at once")
    else:
        group.end(0.0 if count > 1 else GRACE_S)


def outcome(
    config: PretrainConfig, paths: RunPaths, attempt: Path, code: int, interrupted: bool
) -> int:
    """Exit code of an attempt, from what it left; LaunchError if it left nothing.

    What the workers could not leave any more is left in their place, for `status`.
    """
    recorded = attempt / "exit_code"
    told = int(recorded.read_text()) if recorded.is_file() else None
    if is_done(paths, config.schedule.max_steps):
        say(f"{paths.root}: done")
        return 0
    if paths.requeue.is_file():
        say(f"{paths.root}: stopped on request; the same command goes on from there")
        return 0
    if told in MEANINGS:
        say(f"{paths.root}: the workers stopped ({MEANINGS[told]}); see {attempt}")
        return told
    if config.train.dry_run and code == 0 and told is None:
        return 0
    ending = INTERRUPTED if interrupted else LaunchError.exit_code
    if told is None:
        with suppress(StorageError):  # a full disk is often what ended the attempt
            atomic_write(recorded, f"{ending}\n")
    if interrupted:
        say(f"{paths.root}: interrupted")
        return INTERRUPTED
    raise LaunchError(
        f"{paths.root}: the workers ended without finishing (DeepSpeed's launcher says {code})",
        f"read {attempt}/rank_*.log; the same command goes on from the last checkpoint",
    )
