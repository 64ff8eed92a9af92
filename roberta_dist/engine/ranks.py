"""Whether all ranks still train the same model, and as fast as each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from roberta_dist.engine.layout import zero_stage
from roberta_dist.errors import DesyncError
from roberta_dist.runtime.dist import gather_everywhere

INTEGERS = {2: torch.int16, 4: torch.int32}


def weights_checksum(engine: Any) -> int:
    """A sum over the bits of every weight that all ranks hold; 0 at stage 3, where none is."""
    if zero_stage(engine) == 3:
        return 0
    total: Tensor | None = None
    for index, parameter in enumerate(engine.module.parameters()):
        bits = parameter.detach().reshape(-1).view(INTEGERS[parameter.element_size()])
        part = bits.sum(dtype=torch.int64) * (2 * index + 1)
        total = part if total is None else total + part
    return 0 if total is None else int(total)


class Ranks:
    """Comparisons of the ranks; every rank makes the same calls.

    Args:
        engine: DeepSpeed's.
        device: on a GPU its own clock times the forward passes.
        timed: `slow` will be asked for.
    """

    def __init__(self, engine: Any, device: torch.device, timed: bool) -> None:
        self._engine = engine
        self._timed = timed
        self._on_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[Any, Any]] = []

    def check_in_step(self, step: int) -> None:
        """Compare checksums of the weights.

        Raises:
            DesyncError: on every rank, when they differ.
        """
        sums = gather_everywhere(weights_checksum(self._engine))
        if len(set(sums)) > 1:
            usual = max(set(sums), key=sums.count)
            odd = [rank for rank, value in enumerate(sums) if value != usual]
            raise DesyncError(
                f"step {step}: the ranks' weights differ (checksums {sums}); "
                f"not like most: rank {', '.join(map(str, odd))}",
                "suspect that rank's memory or device; go on from the last checkpoint without it",
            )

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Around a forward pass: the part of a step in which a rank waits for no other."""
        if not self._timed:
            yield
            return
        if self._on_gpu:
            event: Any = torch.cuda.Event
            first, last = (event(enable_timing=True) for _ in range(2))
            first.record()
            yield
            last.record()
            self._events.append((first, last))
            return
        began = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - began

    def slow(self, factor: float) -> list[tuple[int, float]]:
        """`slow_ranks` of the forward passes since the last call, which the device has done."""
        own = self._seconds + sum(a.elapsed_time(b) for a, b in self._events) / 1000
        self._seconds = 0.0
        self._events.clear()
        return slow_ranks(gather_everywhere(own), factor)


def slow_ranks(seconds: Sequence[float], factor: float) -> list[tuple[int, float]]:
    """(rank, times the median) of each that took more than `factor` times the median."""
    median = statistics.median_low(seconds)
    if median <= 0:
        return []
    over = [(rank, own / median) for rank, own in enumerate(seconds)]
    return [(rank, times) for rank, times in over if times > factor]
