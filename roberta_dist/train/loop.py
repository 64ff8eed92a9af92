"""The loop: read, step, look, save. Only this file knows the order of those."""

from __future__ import annotations

import logging
import math
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from roberta_dist.config.load import to_yaml
from roberta_dist.config.train import Precision
from roberta_dist.engine.guards import charge_skip, is_overflow
from roberta_dist.engine.result import StepResult
from roberta_dist.errors import StorageError
from roberta_dist.optim.schedule import learning_rate
from roberta_dist.runtime.rundir import RunPaths
from roberta_dist.runtime.signals import StopRequest
from roberta_dist.stream.batch import Batch
from roberta_dist.stream.measure import Sums
from roberta_dist.track.names import CORPUS_LOSS
from roberta_dist.track.sinks import Tracker
from roberta_dist.train.build import Run
from roberta_dist.train.feed import Feed, in_step
from roberta_dist.train.profile import StepProfiler
from roberta_dist.train.retention import delete_old
from roberta_dist.train.speed import matrix_rate, memory_mib, step_flops

LOGGER = logging.getLogger(__name__)
DTYPES = {
    Precision.fp32: torch.float32,
    Precision.bf16: torch.bfloat16,
    Precision.fp16: torch.float16,
}


class Loop:
    """Runs steps until the last one, an early stop or a stop request.

    Args:
        run: the parts.
        tracker: where metrics go.
        stop: set by a signal.
    """

    def __init__(self, run: Run, tracker: Tracker, stop: StopRequest) -> None:
        self.run = run
        self.config = run.config
        self.tracker = tracker
        self.stop = stop
        self.state = run.resume.state
        self.saved_step = self.state.step
        self.save_failures = 0
        paths = RunPaths(Path(run.config.run_dir))
        self.checkpoints = paths.checkpoints
        self.profiler = StepProfiler(run.config.train, paths.profile, run.device, run.world.is_main)
        self.matrix_rate = matrix_rate(run.device, DTYPES[run.config.engine.precision])

    def fit(self) -> bool:
        """Train to `schedule.max_steps`.

        Returns:
            True when the run is done, False when it stopped on request.

        Raises:
            DataFault, NonFiniteError, StorageError: on every rank.
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
            while self.state.step < last_step:
                with self.profiler.step(self.state.step + 1):
                    stepped = self._step(feed)
                if not stepped:
                    self._save(required=True)
                    return False
                self.profiler.done(self.state.step)
                final = self.state.step == last_step
                improved = self._evaluate(final)
                if final or self._out_of_patience():
                    self._save(required=True)
                    return True
                if improved or self.state.step % self.config.checkpoint.every_steps == 0:
                    self._save(required=False)
            return True

    def _batch_rows(self) -> int:
        return self.run.stream.plan.batch_rows(self.state.next_row)

    def _step(self, feed: Feed) -> bool:
        """The next step; False, and no step, when a rank was asked to stop."""
        began = time.perf_counter()
        batches = feed.take(self.state.next_row, self.stop.requested)
        if batches is None:
            return False
        data_wait = time.perf_counter() - began
        self.state = replace(self.state, quarantine=feed.quarantine)
        lr = learning_rate(self.state.step, self.config.optim.lr, self.config.schedule)
        scale, every = self.state.loss_scale, self.config.track.layers_every
        watched = every > 0 and (self.state.step + 1) % every == 0
        update = self.state.optimizer_step + 1 if watched else 0
        result = self.run.engine.train_step(batches, self.state.step, lr, scale.scale, update)
        columns = {**self._batch_columns(), "lr": lr, "data_wait_s": data_wait, **result.layers}
        self._account(result)
        self._log(result, columns, batches, time.perf_counter() - began)
        return True

    def _batch_columns(self) -> dict[str, float]:
        """What only runs write whose batches change, or that lost a pack."""
        columns: dict[str, float] = {}
        plan, row = self.run.stream.plan, self.state.next_row
        if len(plan.segments) > 1:
            columns["global_batch_size"] = plan.batch_rows(row)
            columns["sequence_length"] = plan.at(row).sequence_length
        if self.config.engine.precision is Precision.fp16:
            columns["loss_scale"] = self.state.loss_scale.scale
            columns["overflows"] = self.state.loss_scale.overflows
        if self.state.quarantine.entries:
            columns["quarantined_packs"] = len(self.state.quarantine.entries)
        return columns

    def _account(self, result: StepResult) -> None:
        state = self.state
        first, end = state.next_row, state.next_row + self._batch_rows()
        moved = replace(state, step=state.step + 1, next_row=end)
        scale, engine = state.loss_scale, self.config.engine
        if result.applied:
            if engine.precision is Precision.fp16:
                moved = replace(moved, loss_scale=scale.applied(engine.loss_scale_window))
            self.state = replace(moved, optimizer_step=state.optimizer_step + 1)
        elif is_overflow(result, scale):
            self.state = replace(moved, loss_scale=scale.overflowed())
            LOGGER.info(
                "step %d: a gradient overflowed fp16 at loss scale %g; now %g",
                *(state.step, scale.scale, self.state.loss_scale.scale),
            )
        elif result.masked_tokens + result.pairs == 0:
            LOGGER.warning("step %d: nothing masked in rows [%d, %d)", state.step, first, end)
            self.state = replace(moved, empty=state.empty + 1)
        else:
            budget = self.config.train.skip_budget
            skipped = charge_skip(
                state.step, result.loss, result.grad_norm, (first, end), state.skipped, budget
            )
            LOGGER.warning(
                "step %d skipped (%d of %d): loss=%s grad_norm=%s on rows [%d, %d)",
                *(state.step, skipped, budget, result.loss, result.grad_norm, first, end),
            )
            self.state = replace(moved, skipped=skipped)

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
                "save_failures": self.save_failures,
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
        """Measure the held-out loss where due; True if it is the best and should be kept."""
        every, held_out = self.config.evaluate.every_steps, self.run.held_out
        if not held_out or not (final or self.state.step % every == 0):
            return False
        metrics: dict[str, float] = {}
        total = Sums()
        for corpus in held_out:
            batches = in_step(corpus.batches(self.run.world))
            sums = self.run.engine.held_out_sums(batches)
            total += sums
            if len(held_out) > 1:
                metrics[CORPUS_LOSS + corpus.name] = sums.loss
            LOGGER.info(
                "step %d: held-out loss of %s %.4f nats, perplexity %.1f (unigram entropy %.4f)",
                *(self.state.step, corpus.name, sums.loss, math.exp(min(sums.loss, 700.0))),
                corpus.manifest.unigram_entropy,
            )
        loss = total.loss
        self.state = self.state.evaluated(loss)
        metrics |= {
            "eval_loss": loss,
            "eval_perplexity": math.exp(min(loss, 700.0)),
            "eval_masked_tokens": float(total.masked),
        }
        if total.nsp_loss is not None and total.nsp_accuracy is not None:
            metrics |= {"eval_nsp_loss": total.nsp_loss, "eval_nsp_accuracy": total.nsp_accuracy}
        self.tracker.log(self.state.step, metrics)
        return self.config.checkpoint.keep_best and self.state.best_step == self.state.step

    def _out_of_patience(self) -> bool:
        patience = self.config.train.early_stop_patience
        out = 0 < patience <= self.state.evals_without_improvement
        if out:
            LOGGER.info("early stop: no better held-out loss for %d evaluations", patience)
        return out

    def _save(self, required: bool) -> None:
        """Save this step once. Not required: a failure is a warning and a count."""
        if self.saved_step == self.state.step:
            return
        self.tracker.flush()
        state = self.state.to_json(self.run.stream.fingerprint(self.state.next_row))
        try:
            self.run.engine.save(self.checkpoints, self.state.step, state, to_yaml(self.config))
        except StorageError as error:
            self.save_failures += 1
            if required:
                raise
            LOGGER.warning("checkpoint of step %d is not saved: %s", self.state.step, error)
            return
        self.saved_step = self.state.step
        if self.run.world.is_main:
            delete_old(self.checkpoints, self.config.checkpoint, self.state.best_step)
