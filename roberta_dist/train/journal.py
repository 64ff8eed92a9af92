"""RUN/skips.jsonl: every batch that was left out and why, written before anything is done about it.

It outlives what a rollback takes back: a step that is rolled back over is passed over when it comes
again, also after a kill in between.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from roberta_dist.errors import DataFault
from roberta_dist.runtime.files import fsync_folder, storage_errors


class Reason(str, Enum):
    """Why a batch was left out."""

    non_finite = "non_finite"
    spike = "spike"
    rollback = "rollback"
    listed = "listed"


@dataclass(frozen=True)
class Skip:
    """One batch.

    Attributes:
        step: as in metrics.jsonl.
        first_row, end_row: global rows [first, end).
        reason: why.
        loss, grad_norm: as text, so that NaN and infinity are told apart.
        first_step: of a rollback, the first of the steps up to `step` that are passed over; 0 for it alone.
    """

    step: int
    first_row: int
    end_row: int
    reason: Reason
    loss: str
    grad_norm: str
    first_step: int = 0

    @property
    def key(self) -> tuple[int, int, Reason]:
        """What tells it from others; digits of the loss may differ in another world."""
        return self.step, self.first_row, self.reason


class Journal:
    """The entries of a run.

    Args:
        path: of the file; it need not be there.
        entries: that `read_journal` found on rank 0.
        writes: this rank appends; the others only remember.
    """

    def __init__(self, path: Path, entries: Sequence[Skip], writes: bool) -> None:
        self._path = path
        self._writes = writes
        self._entries = list(entries)

    def knows(self, entry: Skip) -> bool:
        """Whether it is there already: a resumed run meets its batches again."""
        return entry.key in {known.key for known in self._entries}

    def add(self, entry: Skip) -> None:
        """Append an entry that is not there yet, durable on return.

        Raises:
            StorageError: the disk is full.
        """
        if self.knows(entry):
            return
        self._entries.append(entry)
        if not self._writes:
            return
        with storage_errors(self._path):
            new = not self._path.exists()
            with open(self._path, "ab") as handle:
                line = {
                    key: value
                    for key, value in asdict(entry).items()
                    if value or key != "first_step"
                }
                handle.write((json.dumps(line) + "\n").encode())
                handle.flush()
                os.fsync(handle.fileno())
            if new:
                fsync_folder(self._path.parent)

    def rolled_back(self) -> frozenset[int]:
        """Steps to pass over because a rollback was over them."""
        back = [e for e in self._entries if e.reason is Reason.rollback]
        return frozenset(step for e in back for step in range(e.first_step or e.step, e.step + 1))

    def count(self, *reasons: Reason) -> int:
        """Entries with one of these reasons."""
        return sum(entry.reason in reasons for entry in self._entries)


def read_journal(path: Path) -> list[Skip]:
    """The entries of a file, without a last line that a kill cut, which is taken out.

    Raises:
        DataFault: another line cannot be read.
    """
    if not path.is_file():
        return []
    content = path.read_bytes()
    lines = content.split(b"\n")
    if lines.pop():  # a kill cut the last line: what it tells of was not done
        with open(path, "r+b") as handle:
            handle.truncate(content.rfind(b"\n") + 1)
    try:
        values = [json.loads(line) for line in lines]
        return [Skip(**{**value, "reason": Reason(value["reason"])}) for value in values]
    except (ValueError, TypeError, KeyError) as error:
        raise DataFault(f"{path}: cannot be read ({error})", "mend or remove the line") from error
