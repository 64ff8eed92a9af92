"""When a run saves, and what it makes of how a save ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from roberta_dist.config.load import to_yaml
from roberta_dist.engine.saver import Outcome
from roberta_dist.errors import StorageError
from roberta_dist.runtime.dist import on_main
from roberta_dist.runtime.rundir import RunPaths
from roberta_dist.track.sinks import Tracker
from roberta_dist.train.build import Run
from roberta_dist.train.retention import delete_old
from roberta_dist.train.state import TrainState

LOGGER = logging.getLogger(__name__)


RETRY_S = 60.0
"""Seconds from the beginning of a save that failed to the next one."""


class Saves:
    """The checkpoints of one attempt.

    Args:
        run: the parts.
        tracker: what it holds back is written before a checkpoint refers to it.
        beat: called while a save that is waited for goes on.
    """

    def __init__(self, run: Run, tracker: Tracker, beat: Callable[[], None]) -> None:
        self._config = run.config
        self._stream = run.stream
        self._saver = run.engine.saver
        self._is_main = run.world.is_main
        self._tracker = tracker
        self._beat = beat
        self._checkpoints = RunPaths(Path(run.config.run_dir)).checkpoints
        self.saved_step = run.resume.state.step
        """Step of the newest whole checkpoint; 0 without one."""
        self._began = time.monotonic()
        self._failed = False
        self.failures = 0
        """Saves that were given up."""

    def minutes_passed(self) -> bool:
        """Whether a save is due by the clock, which is rank 0's.

        `checkpoint.every_minutes` asks for one, or one that failed RETRY_S ago: the next by steps may be
        hours away.
        """
        minutes, waited = self._config.checkpoint.every_minutes, time.monotonic() - self._began
        due = minutes > 0 and waited >= 60 * minutes
        return self._is_main and (due or (self._failed and waited >= RETRY_S))

    def poll(self) -> None:
        """Let a save that is under way go on; every rank calls this at the same step boundary."""
        self._note(self._saver.poll(), required=False)

    def finish(self) -> None:
        """Wait for the save that is under way; every rank calls this."""
        self._note(self._saver.finish(self._beat), required=False)

    def save(self, state: TrainState, required: bool) -> None:
        """Save a step once; every rank calls this.

        Args:
            state: of the step.
            required: wait for it, and raise if it fails; else it is written beside the steps, and a
                failure is a warning and a count.

        Raises:
            StorageError: on every rank, of a save that is required.
        """
        self.finish()
        if self.saved_step == state.step:
            return
        self._began = time.monotonic()
        contents = state.to_json(self._stream.fingerprint(state.next_row))
        # On rank 0, once the checkpoint is whole.
        then = partial(delete_old, self._checkpoints, self._config.checkpoint, state.best_step)
        try:
            on_main(self._tracker.flush)
            self._saver.start(self._checkpoints, state.step, contents, to_yaml(self._config), then)
        except StorageError as error:
            self._note(Outcome(state.step, error), required)
            return
        if required or not self._config.checkpoint.asynchronous:
            self._note(self._saver.finish(self._beat), required)

    def _note(self, outcome: Outcome | None, required: bool) -> None:
        if outcome is None:
            return
        self._failed = outcome.error is not None
        if outcome.error is None:
            self.saved_step = outcome.step
            return
        self.failures += 1
        if required:
            raise outcome.error
        LOGGER.warning("checkpoint of step %d is not saved: %s", outcome.step, outcome.error)
