"""Keeping a CPU worker's heap small.

Micro-batches differ in tokens and masked positions, so tensors differ in size, and glibc's heap
fragments: measured here, 16 × 128 rows of the tiny model grew from 330 MiB to 1 GiB in 250 steps
without anything being kept. Returning free pages costs time, then and when the next micro-batch
faults them in again, so it is done only when the resident size has grown by a twentieth and, unless
memory is short, the last time was long enough ago: after each micro-batch it took 3 % of a step of
the mini model. Micro-batches of seconds are still trimmed after one by one.
"""

from __future__ import annotations

import ctypes
import os
import time

GROWTH = 1.05
TIME_SHARE = 0.01
"""Of the time that passes, what trimming may take where memory is not short."""


def _resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class HeapTrimmer:
    """Returns free heap pages to the system when they pile up; does nothing without glibc.

    Args:
        enabled: False does nothing.
        short: a budget of memory is to be kept, whatever that costs in time.
    """

    def __init__(self, enabled: bool, short: bool = False) -> None:
        self._short = short
        self._baseline = 0
        self._not_before = 0.0
        self._trim = None
        if enabled and os.path.exists("/proc/self/statm"):
            try:
                self._trim = ctypes.CDLL("libc.so.6").malloc_trim
            except (OSError, AttributeError):  # another C library, such as musl
                self._trim = None

    def check(self) -> None:
        """Call it where large tensors have just been freed."""
        began = time.perf_counter()
        if self._trim is None or began < self._not_before:
            return
        if _resident_bytes() <= self._baseline * GROWTH:
            return
        self.trim()
        # What is still there is in use: grow only by that.
        self._baseline = max(self._baseline, _resident_bytes())
        ended = time.perf_counter()
        if not self._short:
            self._not_before = ended + (ended - began) / TIME_SHARE

    def trim(self) -> None:
        """Return every free page now."""
        if self._trim is not None:
            self._trim(0)
