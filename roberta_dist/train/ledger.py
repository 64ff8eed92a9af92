"""What becomes of a run's state after a step: applied, skipped, passed over, or rolled back."""

from __future__ import annotations

import logging
from dataclasses import replace

from roberta_dist.config.guard import SpikeAction
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.config.train import Precision
from roberta_dist.engine.guards import charge_skip, is_finite, is_overflow
from roberta_dist.engine.result import StepResult
from roberta_dist.errors import NonFiniteError
from roberta_dist.train.journal import Journal, Reason, Skip
from roberta_dist.train.spikes import seen, spike_score
from roberta_dist.train.state import TrainState

LOGGER = logging.getLogger(__name__)


class RollBack(Exception):
    """The run is to go on from its last checkpoint; raised on every rank, after it was noted."""


class Ledger:
    """Takes every decision about a batch, the same on every rank.

    Args:
        config: of the run.
        journal: of batches left out.
    """

    def __init__(self, config: PretrainConfig, journal: Journal) -> None:
        self._config = config
        self._guard = config.guard
        self._journal = journal
        self._passed_over = journal.rolled_back() | set(config.train.skip_steps)

    def passes_over(self, state: TrainState) -> bool:
        """Whether the batch after `state` is to be read and not trained on."""
        return state.step + 1 in self._passed_over

    def accepts(self, state: TrainState, loss: float) -> bool:
        """Whether the update of a finite loss may be applied."""
        acts = self._guard.spike in (SpikeAction.skip, SpikeAction.rollback)
        return not (acts and self._is_spike(state, loss))

    def _is_spike(self, state: TrainState, loss: float) -> bool:
        if self._guard.spike is SpikeAction.off:
            return False
        score = spike_score(loss, state.losses, self._guard.spike_window)
        return score >= self._guard.spike_zscore

    def may_roll_back(self, state: TrainState, result: StepResult) -> bool:
        """Whether `settle` would go back, if there is a checkpoint."""
        return (
            self._guard.spike is SpikeAction.rollback
            and not result.applied
            and is_finite(result.loss, result.grad_norm)
            and not self.accepts(state, result.loss)
        )

    def settle(
        self, state: TrainState, result: StepResult, end_row: int, saved_step: int
    ) -> TrainState:
        """The state after a step.

        Args:
            state: before it.
            result: of it.
            end_row: first global row after its batch.
            saved_step: of the newest checkpoint; 0 without one.

        Raises:
            NonFiniteError: a budget is used up.
            RollBack: see there.
        """
        moved = replace(state, step=state.step + 1, next_row=end_row)
        engine, scale = self._config.engine, state.loss_scale
        rows = (state.next_row, end_row)
        if result.applied:
            if engine.precision is Precision.fp16:
                moved = replace(moved, loss_scale=scale.applied(engine.loss_scale_window))
            if self._is_spike(state, result.loss):  # else it would not have been applied
                LOGGER.warning(
                    "step %d: a loss spike: %.4f on rows [%d, %d)", moved.step, result.loss, *rows
                )
            losses = state.losses
            if is_finite(result.loss):  # a batch may have pairs alone
                losses = seen(result.loss, losses, self._guard.spike_window)
            return replace(moved, optimizer_step=state.optimizer_step + 1, losses=losses)
        if result.masked_tokens + result.pairs == 0:
            LOGGER.warning("step %d: nothing masked in rows [%d, %d)", moved.step, *rows)
            return replace(moved, empty=state.empty + 1)
        entry = Skip(moved.step, *rows, Reason.non_finite, str(result.loss), str(result.grad_norm))
        if self.passes_over(state):
            self._note(replace(entry, reason=Reason.listed))
            return replace(moved, skipped=state.skipped + 1)
        if is_overflow(result, scale):
            smaller = scale.overflowed()
            LOGGER.info(
                "step %d: a gradient overflowed fp16 at loss scale %g; now %g",
                *(moved.step, scale.scale, smaller.scale),
            )
            return replace(moved, loss_scale=smaller)
        if is_finite(result.loss, result.grad_norm) and not self.accepts(state, result.loss):
            self._leave_out(entry, saved_step)
            return replace(moved, skipped=state.skipped + 1)
        budget = self._config.train.skip_budget
        charged = charge_skip(
            moved.step, result.loss, result.grad_norm, rows, state.charged, budget
        )
        self._note(entry)
        return replace(moved, charged=charged, skipped=state.skipped + 1)

    def _leave_out(self, entry: Skip, saved_step: int) -> None:
        """A spike that is acted upon."""
        rolls_back = self._guard.spike is SpikeAction.rollback and saved_step > 0
        entry = replace(entry, reason=Reason.rollback if rolls_back else Reason.spike)
        if rolls_back:  # what was applied up to the checkpoint stays
            first = entry.step + 1 - self._guard.rollback_batches
            entry = replace(entry, first_step=max(first, saved_step + 1))
        used, budget = self._journal.count(Reason.spike, Reason.rollback), self._guard.spike_budget
        if used >= budget and not self._journal.knows(entry):
            raise NonFiniteError(
                f"step {entry.step}: a loss spike: {entry.loss} on rows "
                f"[{entry.first_row}, {entry.end_row}), and guard.spike_budget={budget} is used up",
                "lower optim.lr; or raise guard.spike_budget, or set guard.spike=warn",
            )
        self._note(entry)
        if rolls_back:
            raise RollBack

    def _note(self, entry: Skip) -> None:
        self._journal.add(entry)
        LOGGER.warning(
            "step %d is left out (%s): loss=%s grad_norm=%s on rows [%d, %d)",
            *(entry.step, entry.reason.value, entry.loss, entry.grad_norm),
            *(entry.first_row, entry.end_row),
        )
