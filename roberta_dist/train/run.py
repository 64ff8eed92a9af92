"""`pretrain`: one attempt at a run, from its folder to DONE, REQUEUE or an exit code."""

from __future__ import annotations

import logging
import time
import traceback
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from roberta_dist.config.load import flatten, to_yaml
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.engine.setup import close_world
from roberta_dist.errors import HangError, RobertaDistError, StorageError
from roberta_dist.model.kernels import describe_choice
from roberta_dist.plan.flops import parameter_count
from roberta_dist.runtime.dist import on_main
from roberta_dist.runtime.files import atomic_write, write_json
from roberta_dist.runtime.logs import setup_logging
from roberta_dist.runtime.rundir import RunPaths, complete_steps, current_attempt, is_done
from roberta_dist.runtime.signals import StopRequest
from roberta_dist.runtime.watchdog import Watchdog
from roberta_dist.runtime.world import World, detect_world
from roberta_dist.track.sinks import open_tracker
from roberta_dist.track.truncate import truncate_metrics
from roberta_dist.train.build import Run, build_run
from roberta_dist.train.dry_run import dry_run
from roberta_dist.train.environment import describe_environment
from roberta_dist.train.feed import Stopped
from roberta_dist.train.journal import Journal, read_journal
from roberta_dist.train.ledger import Ledger, RollBack
from roberta_dist.train.loop import Loop
from roberta_dist.train.newest import newest_whole
from roberta_dist.train.resume import ResumePoint
from roberta_dist.train.state import TrainState, state_from_json
from roberta_dist.units import human_count

LOGGER = logging.getLogger(__name__)


def pretrain(config: PretrainConfig, stop: StopRequest | None = None) -> int:
    """Run or resume `config.run_dir`; the worker behind every way of starting.

    Args:
        config: as asked for.
        stop: that has signals already; else it is installed here.

    Returns:
        0 for done, stopped on request (see DONE and REQUEUE) or already done; else the exit code
        of the error, which is also left in the attempt's folder.
    """
    if stop is None:
        stop = StopRequest()
        stop.install()
    world = detect_world()
    paths = RunPaths(Path(config.run_dir))
    if is_done(paths, config.schedule.max_steps):
        if world.is_main:
            print(f"{paths.root}: already complete at step {config.schedule.max_steps}")
        return 0
    attempt = current_attempt(paths, world)
    setup_logging(world, attempt / f"rank_{world.rank}.log")
    try:
        _attempt(config, world, paths, attempt, stop)
        return 0
    except RobertaDistError as error:
        LOGGER.error("%s", error)
        _leave_exit_code(attempt, error.exit_code)
        return error.exit_code
    except Exception:
        LOGGER.error("%s", traceback.format_exc())
        _leave_exit_code(attempt, 1)
        raise
    finally:
        close_world()


def _leave_exit_code(attempt: Path, code: int) -> None:
    path = attempt / "exit_code"
    if code == 1 and path.is_file():
        return  # a rank that knows the reason has spoken; this one only lost it
    with suppress(StorageError):  # a full disk is often what ended the attempt
        atomic_write(path, f"{code}\n")


def _attempt(
    config: PretrainConfig, world: World, paths: RunPaths, attempt: Path, stop: StopRequest
) -> None:
    try:
        run = build_run(config, world, lambda: stop.requested)
    except Stopped:
        on_main(lambda: _leave_requeue(paths))
        return
    if config.train.dry_run:
        dry_run(run, paths)
        return
    on_main(lambda: _prepare_folder(run, paths, attempt))
    _announce(run)
    watchdog = Watchdog(
        config.train.hang_timeout_s,
        attempt / f"rank_{world.rank}.stacks",
        lambda: _leave_exit_code(attempt, HangError.exit_code),
    )
    watchdog.beat()
    journal = Journal(paths.skips, on_main(lambda: read_journal(paths.skips)), world.is_main)
    try:
        while True:
            try:
                _fit(run, paths, stop, Ledger(config, journal), watchdog)
                return
            except RollBack:
                run = _rolled_back(run, paths, attempt)
    finally:
        watchdog.stop()


def _fit(run: Run, paths: RunPaths, stop: StopRequest, ledger: Ledger, watchdog: Watchdog) -> None:
    """From where the run stands to a sentinel, or an error."""
    tracker = open_tracker(
        run.config.track,
        paths.root,
        run.resume.state.step,
        run.config.schedule.max_steps,
        run.world.is_main,
        flatten(run.config) | {"train.micro_batch_size": run.micro_batch_size},
    )
    try:
        loop = Loop(run, tracker, stop, ledger, watchdog.beat)
        finished = loop.fit()
        on_main(lambda: _leave_sentinel(paths, loop, finished))
    finally:
        # No collective here: after a failure the other ranks are elsewhere.
        tracker.close()


def _rolled_back(run: Run, paths: RunPaths, attempt: Path) -> Run:
    """The run at its newest checkpoint, with metrics cut back to it."""
    run.engine.saver.finish()
    checkpoint = newest_whole(paths.checkpoints, run.config.checkpoint, run.world)
    assert checkpoint is not None, "a rollback is decided on only where there is a checkpoint"
    run.engine.load(checkpoint)
    state = state_from_json(checkpoint.train_state)
    removed = on_main(lambda: _cut_metrics(paths, state, attempt))
    LOGGER.warning(
        "rolled back to step %d (%s); %d metrics lines moved to %s",
        *(state.step, checkpoint.folder, removed, attempt / "removed_metrics.jsonl"),
    )
    return replace(run, resume=ResumePoint(state, []))


def _prepare_folder(run: Run, paths: RunPaths, attempt: Path) -> None:
    """Rank 0: what this attempt is, and metrics cut back to where it starts."""
    state, config = run.resume.state, run.config
    paths.done.unlink(missing_ok=True)
    paths.requeue.unlink(missing_ok=True)
    removed = _cut_metrics(paths, state, attempt)
    (attempt / "exit_code").unlink(missing_ok=True)  # of an earlier world, where folders are shared
    atomic_write(attempt / "config.yaml", to_yaml(config))
    atomic_write(paths.config_yaml, to_yaml(config))
    write_json(paths.environment_json, describe_environment(run.world, run.device))
    changes = "; ".join(str(change) for change in run.resume.changes) or "none"
    line = (
        f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {attempt.name} step={state.step} "
        f"world_size={run.world.world_size} removed_metrics={removed} changes: {changes}\n"
    )
    with open(paths.attempts_log, "a") as log:
        log.write(line)


def _cut_metrics(paths: RunPaths, state: TrainState, attempt: Path) -> int:
    evaluated = state.evaluated_step == state.step
    return truncate_metrics(paths.metrics, state.step, attempt / "removed_metrics.jsonl", evaluated)


def _announce(run: Run) -> None:
    config, stream = run.config, run.stream
    parameters = parameter_count(
        config.model, stream.manifest.vocab_size, next_sentence=config.data.format.is_pair
    )
    LOGGER.info(
        "%s parameters, ZeRO-%d %s, %d rank(s), %s",
        human_count(parameters),
        config.engine.stage,
        config.engine.precision.value,
        run.world.world_size,
        describe_choice(config.kernels, config.model, run.device),
    )
    for corpus in stream.corpora:
        LOGGER.info(
            "corpus %s: %s tokens in %d packs, %d lanes x %d packs",
            *(corpus.name, human_count(corpus.manifest.tokens), len(corpus.manifest.packs)),
            *(corpus.shuffle.lanes, corpus.shuffle.window),
        )
    splits = {(c.manifest.held_out_salt, c.manifest.held_out_fraction) for c in stream.corpora}
    if len(splits) > 1:
        LOGGER.warning(
            "the corpora were split by different salts or fractions (%s): held-out text of one may be "
            "training text of another; prepare them with the same corpus.held_out_salt and _fraction",
            ", ".join(f"{salt} {fraction}" for salt, fraction in sorted(splits)),
        )
    step, row = run.resume.state.step, run.resume.state.next_row
    rows = stream.plan.batch_rows(row)
    LOGGER.info("from step %d (row %d): %d rows a step", step, row, rows)
    for segment in stream.plan.segments[1:9]:
        LOGGER.info(
            "from step %d (row %d): %d rows of %d tokens a step",
            *(segment.first_step, segment.first_row, segment.rows, segment.sequence_length),
        )
    per_rank = -(-rows // run.world.world_size)
    wasted = per_rank * run.world.world_size - rows
    if wasted:
        LOGGER.warning(
            "a batch of %d rows does not divide by %d ranks: %.1f %% of the rows are empty",
            *(rows, run.world.world_size, 100 * wasted / (per_rank * run.world.world_size)),
        )


def _leave_requeue(paths: RunPaths) -> None:
    """Stopped before anything was done: the run stands where its newest checkpoint does."""
    step = max(complete_steps(paths.checkpoints), default=0)
    LOGGER.info("asked to stop while starting; the run stands at step %d", step)
    write_json(paths.requeue, {"step": step, "reason": "signal"})


def _leave_sentinel(paths: RunPaths, loop: Loop, finished: bool) -> None:
    state = loop.state
    reached = state.step >= loop.config.schedule.max_steps
    reason = "max_steps" if reached else "early_stop" if finished else "signal"
    contents: dict[str, Any] = {"step": state.step, "reason": reason}
    write_json(paths.done if finished else paths.requeue, contents)
