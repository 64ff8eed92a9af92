"""What each step of a run takes: rows, their length and the shares of the corpora.

Steps become rows once, at the start: a run is a list of segments, each from a first row on, and a
batch is found from `next_row` alone. So a resume needs no other number than that.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from roberta_dist.config.data import DataConfig, Phase

Weights = tuple[float, ...]
Fill = Callable[[int, Weights], float]
"""(sequence length, weights) → rows that take the place of one full row."""


@dataclass(frozen=True)
class Segment:
    """Steps of the same batch.

    Attributes:
        first_step, first_row: where it begins.
        rows: rows of a global batch.
        sequence_length: longest row.
        weights: share of each corpus, in the order of `data.locations`.
    """

    first_step: int
    first_row: int
    rows: int
    sequence_length: int
    weights: Weights


@dataclass(frozen=True)
class Plan:
    """All segments of a run, in order."""

    segments: tuple[Segment, ...]

    def index_at(self, row: int) -> int:
        """Number of the segment that `row` lies in."""
        return bisect_right(self.segments, row, key=lambda segment: segment.first_row) - 1

    def at(self, row: int) -> Segment:
        """The segment that `row` lies in."""
        return self.segments[self.index_at(row)]

    def batch_rows(self, row: int) -> int:
        """Rows of the global batch that begins at `row`; it never reaches into the next segment."""
        index = self.index_at(row)
        rows = self.segments[index].rows
        if index + 1 < len(self.segments):
            rows = min(rows, self.segments[index + 1].first_row - row)
        return rows

    def changes_kind(self, row: int, next_row: int) -> bool:
        """Whether rows from `next_row` on have another length or mixture than those at `row`."""
        before, after = self.at(row), self.at(next_row)
        return (before.sequence_length, before.weights) != (after.sequence_length, after.weights)

    def row_of_step(self, step: int) -> int:
        """First row of a step."""
        index = bisect_right(self.segments, step, key=lambda segment: segment.first_step) - 1
        segment = self.segments[index]
        return segment.first_row + (step - segment.first_step) * segment.rows


def make_plan(
    data: DataConfig, global_batch_size: int, weights: Weights, fill: Fill = lambda *_: 1.0
) -> Plan:
    """The plan of a configuration.

    Args:
        data: base values and phases.
        global_batch_size: full rows of a step, from the first on.
        weights: shares of the corpora, from the first step on.
        fill: how many rows of the format take the place of a full one.
    """
    segments: list[Segment] = []
    size, length = global_batch_size, data.sequence_length
    scale = fill(length, weights)

    def begin(step: int, full_rows: int) -> None:
        rows = max(1, round(full_rows * scale))
        first_row = 0
        if segments:
            last = segments[-1]
            if (last.rows, last.sequence_length, last.weights) == (rows, length, weights):
                return
            first_row = last.first_row + (step - last.first_step) * last.rows
            if step == last.first_step:
                segments.pop()
        segments.append(Segment(step, first_row, rows, length, weights))

    begin(0, size)
    for phase in data.phases:
        length = phase.sequence_length or length
        if phase.weights is not None:
            weights = tuple(phase.weights[name] for name in data.locations)
        scale = fill(length, weights)  # once a phase: it sums over all packs
        for step, full_rows in _ramp(phase, size):
            begin(step, full_rows)
        size = phase.global_batch_size or size
    return Plan(tuple(segments))


def _ramp(phase: Phase, size: int) -> list[tuple[int, int]]:
    """(step, full rows) of each change of batch size in a phase that begins with `size`."""
    target = phase.global_batch_size or size
    steps = max(1, phase.ramp_steps)
    return [
        (phase.from_step + step, size + (target - size) * (step + 1) // steps)
        for step in range(steps)
    ]
