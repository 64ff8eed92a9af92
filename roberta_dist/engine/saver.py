"""Checkpoints written beside the steps: the loop waits for the copy in host memory, not for the disk.

Each rank's thread writes its shard. When all ranks agree that theirs is written, rank 0's thread adds
what is shared, the marker last, and gives the folder its name. Collectives run on the main thread
only, at step boundaries: all ranks know whether a save is under way.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from roberta_dist.checkpoint.format import shard_name, step_folder, temporary_folder
from roberta_dist.checkpoint.writer import FileSum, finish_checkpoint, write_tensors
from roberta_dist.engine.save import KINDS, Snapshot, take_snapshot
from roberta_dist.errors import RobertaDistError, StorageError
from roberta_dist.runtime.dist import all_max, all_sum, barrier, gather_to_main, on_main
from roberta_dist.runtime.task import Task
from roberta_dist.runtime.world import World
from roberta_dist.units import MIB

LOGGER = logging.getLogger(__name__)
SLICE_S = 1.0
"""Seconds of waiting for a thread after which the ranks compare how far they are."""
SPARE_BYTES = MIB
"""For index, state, configuration and what the file system itself needs."""


@dataclass(frozen=True)
class Outcome:
    """How a save ended, on every rank.

    Attributes:
        step: that was saved.
        error: why it was not; on ranks that are not at fault, that another one was.
    """

    step: int
    error: RobertaDistError | None = None


@dataclass(frozen=True)
class _Under:
    """A save under way."""

    step: int
    final: Path
    temporary: Path
    snapshot: Snapshot
    entries: list[Any]
    train_state: Mapping[str, Any]
    config_yaml: str
    then: Callable[[], None]


class Saver:
    """One save at a time.

    Args:
        engine: DeepSpeed's.
        world: ranks.
        device: where collectives run.
    """

    def __init__(self, engine: Any, world: World, device: torch.device) -> None:
        self._engine = engine
        self._world = world
        self._device = device
        self._under: _Under | None = None
        self._writing: Task[FileSum] | None = None
        self._finishing: Task[None] | None = None

    def start(
        self,
        checkpoints: Path,
        step: int,
        train_state: Mapping[str, Any],
        config_yaml: str,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Copy the state of `step` and begin to write it; every rank calls this, with none under way.

        Args:
            checkpoints: folder of the run's checkpoints.
            step: updates done.
            train_state: contents of train_state.json.
            config_yaml: of the run.
            then: run on rank 0 when the checkpoint is whole, beside the steps.

        Raises:
            StorageError: on every rank, when the disk has too little room or refuses.
        """
        assert self._under is None, "a save is under way"
        temporary, final = temporary_folder(checkpoints, step), step_folder(checkpoints, step)
        snapshot = take_snapshot(self._engine, self._world, int(train_state["optimizer_step"]))
        needed = torch.tensor(snapshot.nbytes, dtype=torch.int64, device=self._device)
        on_main(partial(_make_room, temporary, final, int(all_sum(needed))))
        entries = gather_to_main(snapshot.entries)
        self._under = _Under(
            step, final, temporary, snapshot, entries, dict(train_state), config_yaml, then
        )
        shard = temporary / shard_name(self._world.rank)
        work = partial(_write, shard, snapshot)
        self._writing = Task(work, f"checkpoint of step {step}")

    def poll(self) -> Outcome | None:
        """Go on where the threads are ready; how the save ended, once. Every rank calls this.

        Raises:
            BaseException: a thread met what is no error of storage.
        """
        if self._under is None:
            return None
        task = self._task()
        flags = torch.tensor([not task.done, task.done and task.error is not None])
        unfinished, failed = all_max(flags.int().to(self._device)).tolist()
        if unfinished:
            return None
        if failed:
            return self._failed(task.error)
        if self._finishing is None:
            self._finish(self._under)
            return None
        return self._end(None)

    def finish(self, beat: Callable[[], None] = lambda: None) -> Outcome | None:
        """Wait for the save under way, if there is one, and tell how it ended. Every rank calls this.

        Args:
            beat: called on every rank whenever some rank's part has grown: that is progress.
        """
        written = 0
        while self._under is not None:
            self._task().wait(SLICE_S)
            outcome = self.poll()
            if outcome is not None:
                return outcome
            before, written = written, self._written()
            grown = torch.tensor([written > before], dtype=torch.int32, device=self._device)
            if all_max(grown).item():
                beat()
        return None

    def _written(self) -> int:
        """Bytes of this rank's part that are on their way."""
        assert self._under is not None
        with suppress(OSError):
            return (self._under.temporary / shard_name(self._world.rank)).stat().st_size
        return 0

    def _task(self) -> Task[Any]:
        task = self._finishing or self._writing
        assert task is not None, "no save is under way"
        return task

    def _finish(self, under: _Under) -> None:
        assert self._writing is not None
        shard = shard_name(self._world.rank)
        sums = dict(gather_to_main((shard, self._writing.result())))
        work: Callable[[], None] = partial(_finish_on_main, under, sums)
        self._finishing = Task(work if self._world.is_main else lambda: None, "checkpoint's end")

    def _failed(self, error: BaseException | None) -> Outcome:
        under = self._under
        assert under is not None
        barrier()  # every thread has ended: poll says so
        if self._world.is_main:
            shutil.rmtree(under.temporary, ignore_errors=True)
        if error is not None and not isinstance(error, RobertaDistError):
            raise error
        return self._end(
            error
            or StorageError(
                f"{under.final}: another rank could not write its part", "see that rank's log"
            )
        )

    def _end(self, error: RobertaDistError | None) -> Outcome:
        assert self._under is not None
        outcome = Outcome(self._under.step, error)
        self._under = self._writing = self._finishing = None
        return outcome


def _make_room(temporary: Path, final: Path, needed: int) -> None:
    """Rank 0, before a save: remove what an interrupted one left, and look at the disk."""
    shutil.rmtree(temporary, ignore_errors=True)
    with _any_storage_error(temporary):
        temporary.mkdir(parents=True)
        free = shutil.disk_usage(temporary).free
    if free < needed + SPARE_BYTES:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StorageError(
            f"{final}: no space left on the disk: the checkpoint needs {needed} bytes, {free} are free",
            "free space, or keep fewer checkpoints (checkpoint.keep_last, keep_every)",
        )


def _write(shard: Path, snapshot: Snapshot) -> FileSum:
    try:
        with _any_storage_error(shard):
            return write_tensors(shard, snapshot.tensors)
    except StorageError as error:
        raise StorageError(
            f"{error.problem}; the rank's part of the checkpoint needs {snapshot.nbytes} bytes",
            error.remedy,
        ) from error


def _finish_on_main(under: _Under, sums: Mapping[str, FileSum]) -> None:
    index = {
        "step": under.step,
        "kinds": list(KINDS),
        "shapes": under.snapshot.shapes,
        "fragments": [vars(entry) for rank in under.entries for entry in rank],
    }
    with _any_storage_error(under.final):
        finish_checkpoint(
            under.temporary, under.final, index, under.train_state, under.config_yaml, sums
        )
    try:
        under.then()
    except (OSError, StorageError) as error:  # the checkpoint is whole all the same
        LOGGER.warning("after the checkpoint of step %d: %s", under.step, error)


@contextmanager
def _any_storage_error(path: Path) -> Iterator[None]:
    """Whatever the file system says against a checkpoint is no reason to end the run."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error})", "look at the disk") from error
