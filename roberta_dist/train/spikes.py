"""A loss far above the recent ones, by a score that a few wild losses do not move."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

NORMAL = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""
LEAST_SPREAD = 1e-3
"""Of the median: losses that hardly differ make no spike of a small one."""


def spike_score(loss: float, window: Sequence[float], size: int) -> float:
    """Standard deviations by which `loss` lies above the median of `window`.

    Args:
        loss: of the step in question, finite.
        window: losses of the steps applied before it.
        size: `guard.spike_window`.

    Returns:
        The robust z-score (Iglewicz and Hoaglin 1993, with the median absolute deviation); 0 while the
        window is less than half full.
    """
    if len(window) < size // 2:
        return 0.0
    median = statistics.median(window)
    deviation = statistics.median(abs(value - median) for value in window)
    return (loss - median) / max(NORMAL * deviation, LEAST_SPREAD * abs(median), 1e-12)


def seen(loss: float, window: Sequence[float], size: int) -> tuple[float, ...]:
    """The window after a step with `loss` was applied."""
    return (*window, loss)[-size:]
