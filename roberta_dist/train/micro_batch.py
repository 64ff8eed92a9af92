"""The largest micro-batch that fits, by doubling and bisection: numbers only.

A trial's peak memory is the larger of two straight lines in its rows: what the reduction of the
gradients takes, which does not depend on them, and the activations. So a line through two smaller
trials says what more rows will take; it can be short by the reduction's buffers, once, where the
second line takes over. No size is tried that such a line puts above the budget.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from roberta_dist.errors import ConfigError
from roberta_dist.units import MIB

LOGGER = logging.getLogger(__name__)

Measure = Callable[[int], int]
"""Rows → peak memory of a step with micro-batches of so many, bytes; 0 rows is an empty batch."""


def micro_steps_of(rows_per_rank: int, size: int) -> int:
    """Micro-batches of `size` rows that hold `rows_per_rank`."""
    return -(-rows_per_rank // size)


def even_size(rows_per_rank: int, most: int) -> int:
    """The smallest size with as few micro-batches as `most` rows have: the fewest empty rows.

    Example: 100 rows a rank, 48 of which fit: 3 micro-batches, of 34 rows.
    """
    return micro_steps_of(rows_per_rank, micro_steps_of(rows_per_rank, most))


@dataclass(frozen=True)
class Found:
    """Result of a search.

    Attributes:
        rows: of a micro-batch.
        peaks: rows → peak bytes of every trial; 0 is an empty batch.
    """

    rows: int
    peaks: dict[int, int]


class Search:
    """Tries sizes; every rank gives it the same numbers, so all take the same way.

    Args:
        measure: runs one trial.
        held: bytes before the first trial: weights, optimizer state and the process itself.
        budget: bytes that a trial may take.
        origin: where the budget comes from, for the error.
        rows_per_rank: rows of a rank in the largest global batch: no micro-batch has more.
    """

    def __init__(
        self, measure: Measure, held: int, budget: int, origin: str, rows_per_rank: int
    ) -> None:
        self._measure = measure
        self._held = held
        self._budget = budget
        self._origin = origin
        self._rows_per_rank = rows_per_rank
        self.peaks: dict[int, int] = {}

    def run(self) -> Found:
        """Search.

        Raises:
            ConfigError: not even one row fits.
        """
        if self._held > self._budget or not (self._fits(0) and self._fits(1)):
            raise self._nothing_fits()
        most, too_many = 1, self._rows_per_rank + 1
        while most < self._rows_per_rank:
            rows = min(2 * most, self._rows_per_rank)
            if not self._fits(rows):
                too_many = rows
                break
            most = rows
        # Sizes that need as many micro-batches are as good as each other.
        while self._steps(most) != self._steps(too_many - 1):
            rows = (most + too_many) // 2
            if self._fits(rows):
                most = rows
            else:
                too_many = rows
        # A trial of its own, so that the peak of what is chosen is known. It may miss by noise.
        while not self._fits(rows := even_size(self._rows_per_rank, most)):
            most = rows - 1
        return Found(rows, self.peaks)

    def expected(self, rows: int) -> int:
        """Peak bytes that the smaller trials let expect of `rows`: the steepest line through them."""
        smaller = sorted(tried for tried in self.peaks if tried < rows)
        last = smaller[-1]
        slopes = [
            (self.peaks[last] - self.peaks[other]) / (last - other)
            for other in {smaller[0], smaller[max(0, len(smaller) - 2)]}
            if other != last
        ]
        return self.peaks[last] + round(max([0.0, *slopes]) * (rows - last))

    def _steps(self, size: int) -> int:
        return micro_steps_of(self._rows_per_rank, size)

    def _fits(self, rows: int) -> bool:
        if rows not in self.peaks:
            expected = self.expected(rows) if self.peaks else self._held
            if expected > self._budget:
                LOGGER.info(
                    "micro-batch of %d row(s): would take about %d MiB of %d, not tried",
                    *(rows, expected // MIB, self._budget // MIB),
                )
                return False
            began = time.perf_counter()
            self.peaks[rows] = self._measure(rows)
            LOGGER.info(
                "micro-batch of %d row(s): %d MiB of %d, %.1f s (trial %d of at most %d)",
                *(rows, self.peaks[rows] // MIB, self._budget // MIB, time.perf_counter() - began),
                *(len(self.peaks), 3 + 2 * self._rows_per_rank.bit_length()),
            )
        return self.peaks[rows] <= self._budget

    def _nothing_fits(self) -> ConfigError:
        known = [f"{self._held / MIB:.0f} MiB with weights and optimizer state"]
        names = {0: "the gradients of an empty batch", 1: "one row"}
        known += [f"{self.peaks[rows] / MIB:.0f} MiB with {names[rows]}" for rows in self.peaks]
        if len(known) < 3:
            known.append("one row was not tried")
        return ConfigError(
            f"train.micro_batch_size=auto: no micro-batch fits: a rank holds {', '.join(known)}; "
            f"a step may take {self._budget / MIB:.0f} MiB ({self._origin})",
            "a higher engine.stage, more ranks, engine.offload=cpu, a shorter data.sequence_length or "
            "kernels.activation_checkpointing=true take less; where there is more memory, raise "
            "train.memory_budget_mib",
        )
