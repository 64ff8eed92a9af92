"""The loop: read, step, look, save. Only this file knows the order of those."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from roberta_dist.engine.result import StepResult
from roberta_dist.errors import DataFault, DesyncError, NonFiniteError
from roberta_dist.optim.schedule import learning_rate
from roberta_dist.runtime.rundir import RunPaths
from roberta_dist.runtime.signals import StopRequest
from roberta_dist.stream.batch import Batch
from roberta_dist.track.sinks import Tracker
from roberta_dist.train.build import Run
from roberta_dist.train.columns import batch_columns
from roberta_dist.train.feed import Feed, Stopped
from roberta_dist.train.held_out import measure_held_out
from roberta_dist.train.ledger import Ledger
from roberta_dist.train.profile import StepProfiler
from roberta_dist.train.saves import Saves
from roberta_dist.train.speed import DTYPES, matrix_rate, memory_mib, step_flops

LOGGER = logging.getLogger(__name__)


class Loop:
    """Runs steps until the last one, an early stop or a stop request.

    Args:
        run: the parts.
        tracker: where metrics go.
        stop: set by a signal.
        ledger: decides about batches.
        beat: called whenever there was progress.
    """

    def __init__(
        self,
        run: Run,
        tracker: Tracker,
        stop: StopRequest,
        ledger: Ledger,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self.run = run
        self.config = run.config
        self.tracker = tracker
        self.stop = stop
        self.ledger = ledger
        self.beat = beat
        self.state = run.resume.state
        self.saves = Saves(run, tracker, beat)
        paths = RunPaths(Path(run.config.run_dir))
        self.profiler = StepProfiler(run.config.train, paths.profile, run.device, run.world.is_main)
        self.matrix_rate = matrix_rate(run.device, DTYPES[run.config.engine.precision])

    def fit(self) -> bool:
        """Train to `schedule.max_steps`.

        Returns:
            True when the run is done, False when it stopped on request.

        Raises:
            DataFault, NonFiniteError, StorageError: on every rank.
            RollBack: on every rank; what follows starts from the newest checkpoint.
        """
        plan, last_step = self.run.stream.plan, self.config.schedule.max_steps
        last_row = self.state.next_row
        last_row += plan.row_of_step(last_step) - plan.row_of_step(self.state.step)
        feed = Feed(
            self.run.stream,
            self.run.world,
            self.run.device,
            self.run.micro_batch_size,
            self.state.next_row,
            last_row,
            self.state.quarantine,
        )
        with closing(feed), self.profiler:
            try:
                if self._evaluation_was_cut_off() and self._settle():
                    return True
                if self.state.step > 0 and self._out_of_patience():
                    return True  # a kill came between the last checkpoint and DONE
                while self.state.step < last_step:
                    self.beat()
                    self.saves.poll()
                    with self.profiler.step(self.state.step + 1):
                        self._step(feed)
                    self.profiler.done(self.state.step)
                    self._compare_ranks()
                    if self._settle():
                        return True
            except Stopped:
                self.saves.save(self.state, required=True)
                return False
            except (NonFiniteError, DesyncError):
                self.saves.finish()  # on every rank: what is being saved is still good
                raise
        return True

    def _settle(self) -> bool:
        """Evaluate and save where due; True when the run is done."""
        final = self.state.step == self.config.schedule.max_steps
        improved = self._evaluate(final)
        if final or self._out_of_patience():
            self.saves.save(self.state, required=True)
            return True
        if improved or self.state.step % self.config.checkpoint.every_steps == 0:
            self.saves.save(self.state, required=False)
        return False

    def _compare_ranks(self) -> None:
        """Every so often: equal weights, and no rank much slower than the others.

        Raises:
            DesyncError: on every rank.
        """
        guard, step = self.config.guard, self.state.step
        if guard.desync_every and step % guard.desync_every == 0:
            self.run.engine.ranks.check_in_step(step)
        if guard.slow_rank_every and step % guard.slow_rank_every == 0:
            for rank, times in self.run.engine.ranks.slow(guard.slow_rank_factor):
                LOGGER.warning(
                    "rank %d is slow: its forward passes took %.1f times the median since the last look",
                    *(rank, times),
                )

    def _evaluation_was_cut_off(self) -> bool:
        step, every = self.state.step, self.config.evaluate.every_steps
        due = every > 0 and (step % every == 0 or step == self.config.schedule.max_steps)
        return step > 0 and due and self.state.evaluated_step != step

    def _batch_rows(self) -> int:
        return self.run.stream.plan.batch_rows(self.state.next_row)

    def _step(self, feed: Feed) -> None:
        """The next step.

        Raises:
            Stopped: and no step, when a rank was asked to stop.
        """
        began = time.perf_counter()
        try:
            batches = feed.take(
                self.state.next_row, self.stop.requested, self.saves.minutes_passed()
            )
        except DataFault:  # on every rank: all steps so far are good
            self.saves.save(self.state, required=False)
            self.saves.finish()
            raise
        if batches is None:
            raise Stopped("asked to stop")
        data_wait = time.perf_counter() - began
        if feed.save_due:
            self.saves.save(self.state, required=False)
        self.state = replace(self.state, quarantine=feed.quarantine)
        lr = learning_rate(self.state.step, self.config.optim.lr, self.config.schedule)
        scale, every = self.state.loss_scale, self.config.track.layers_every
        watched = every > 0 and (self.state.step + 1) % every == 0
        update = self.state.optimizer_step + 1 if watched else 0
        if self.ledger.passes_over(self.state):
            result = self.run.engine.pass_over(batches)
        else:
            accept = partial(self.ledger.accepts, self.state)
            result = self.run.engine.train_step(
                batches, self.state.step, lr, scale.scale, update, accept
            )
        columns = {
            **batch_columns(self.run, self.state),
            "lr": lr,
            "data_wait_s": data_wait,
            **result.layers,
        }
        end_row = self.state.next_row + self._batch_rows()
        if self.ledger.may_roll_back(self.state, result):
            self.saves.finish()  # to where it goes back must not depend on the disk's speed
        other_kind = self.run.stream.plan.changes_kind(self.state.next_row, end_row)
        self.state = self.ledger.settle(self.state, result, end_row, self.saves.saved_step)
        if other_kind:  # losses to come are no measure for those that were
            self.state = replace(self.state, losses=())
        self._log(result, columns, batches, time.perf_counter() - began)

    def _log(
        self, result: StepResult, columns: dict[str, float], batches: list[Batch], took: float
    ) -> None:
        due = self.state.step % self.config.track.log_every == 0 or result.layers
        if not due or not self.run.world.is_main:
            return
        pairs = {"nsp_loss": result.nsp_loss, "nsp_accuracy": result.nsp_accuracy}
        flops = step_flops(self.config.model, self.run.stream.manifest.vocab_size, batches)
        self.tracker.log(
            self.state.step,
            {
                "next_row": self.state.next_row,
                "loss": result.loss,
                "masked_tokens": result.masked_tokens,
                "grad_norm": result.grad_norm,
                **(pairs if result.pairs else {}),
                **columns,
                **self.profiler.columns,
                "skipped": self.state.skipped + self.state.empty,
                "save_failures": self.saves.failures,
                "epoch": self.run.stream.order.epochs(self.state.next_row),
                "tokens_per_s": result.tokens / took,
                "mfu": flops / took / self.matrix_rate,
                "step_time_s": took,
                "compute_s": result.compute_s,
                "optimizer_s": result.optimizer_s,
                "memory_mib": memory_mib(self.run.device),
            },
        )

    def _evaluate(self, final: bool) -> bool:
        """Measure the held-out loss where due; True if it is the best and should be kept.

        Raises:
            Stopped: and nothing is measured, when a rank was asked to stop.
        """
        every = self.config.evaluate.every_steps
        if not self.run.held_out or not (final or self.state.step % every == 0):
            return False
        loss, metrics = measure_held_out(self.run, self.state.step, self._stop_in_evaluation)
        self.state = self.state.evaluated(loss)
        self.tracker.log(self.state.step, metrics)
        return self.config.checkpoint.keep_best and self.state.best_step == self.state.step

    def _stop_in_evaluation(self) -> bool:
        self.beat()
        return self.stop.requested

    def _out_of_patience(self) -> bool:
        patience = self.config.train.early_stop_patience
        out = 0 < patience <= self.state.evals_without_improvement
        if out:
            LOGGER.info("early stop: no better held-out loss for %d evaluations", patience)
        return out
