"""How fast a run goes, and how long it still takes: pure functions of lines of metrics.jsonl."""

from __future__ import annotations

from statistics import median

from roberta_dist.launcher.run_files import Row

RECENT_STEPS = 20


def tokens_per_s(rows: list[Row]) -> float | None:
    """Median of the recent steps; steps that a profiler slowed down are left out."""
    return _median(rows, "tokens_per_s")


def step_s(rows: list[Row], first_step: int) -> float | None:
    """Seconds that a step takes, evaluations and saves included.

    Args:
        rows: training lines, newest first.
        first_step: from which the attempt went on: what came before ended in a restart.

    Returns:
        From the times of the lines; from the steps' own time, without evaluations and saves, where
        there are no two lines with one; None without any.
    """
    timed: list[tuple[int, float]] = [
        (row["step"], row["time"]) for row in rows if row["step"] > first_step and "time" in row
    ]
    if len(timed) > 1 and timed[0][0] > timed[-1][0]:
        (last, now), (first, then) = timed[0], timed[-1]
        return (now - then) / (last - first)
    return _median(rows, "step_time_s")


def time_left_s(rows: list[Row], first_step: int, max_steps: int | None) -> float | None:
    """Seconds to the last step at that pace; None where nothing can be said."""
    pace = step_s(rows, first_step)
    if pace is None or max_steps is None or not rows:
        return None
    done: int = rows[0]["step"]
    return max(0.0, pace * (max_steps - done))


def _median(rows: list[Row], name: str) -> float | None:
    values: list[float] = [
        row[name] for row in rows if row.get(name) is not None and not row.get("profiled")
    ]
    return median(values[:RECENT_STEPS]) if values else None
