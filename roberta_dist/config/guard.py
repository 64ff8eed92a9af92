"""`guard`: what watches a run, and what it may do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from roberta_dist.config.fields import free, require


class SpikeAction(str, Enum):
    """What a loss far above the recent ones leads to."""

    off = "off"
    warn = "warn"
    skip = "skip"
    rollback = "rollback"


@dataclass(frozen=True)
class GuardConfig:
    """Guards beside those of `train` (non-finite numbers: skip_budget; a hang: hang_timeout_s)."""

    spike: SpikeAction = free(SpikeAction.warn)
    """`warn` tells; `skip` does not apply the update of that batch; `rollback` goes back to the last
    checkpoint and passes over the batch, and those before it, when they come again."""
    rollback_batches: int = free(20)
    """Batches that a rollback passes over, the last of them the spike's, as far as they came after the
    checkpoint; with 1 the weights are those of `skip`."""
    spike_zscore: float = free(10.0)
    """Loss above the median of the window by so many standard deviations, estimated from the median
    absolute deviation."""
    spike_window: int = free(100)
    """Losses of applied steps that are looked back on; half of them must be there."""
    spike_budget: int = free(10)
    """Batches that `skip` or `rollback` may leave out before the run stops."""
    desync_every: int = free(1000)
    """Compare the weights of all ranks by a checksum every so many steps; 0 never."""
    slow_rank_every: int = free(100)
    """Compare the ranks' own forward times every so many steps; 0 never."""
    slow_rank_factor: float = free(1.5)
    """Tell of a rank whose own time is so many times the median."""
    inject_nan_rows: list[int] = free([])
    """Global rows whose loss is made NaN: to see what a run does about one."""

    def __post_init__(self) -> None:
        require(self.spike_zscore > 0, "guard.spike_zscore", self.spike_zscore, "must be positive")
        require(self.spike_window >= 10, "guard.spike_window", self.spike_window, "must be ≥ 10")
        require(
            self.rollback_batches >= 1,
            "guard.rollback_batches",
            self.rollback_batches,
            "must be ≥ 1",
        )
        require(
            self.slow_rank_factor > 1,
            "guard.slow_rank_factor",
            self.slow_rank_factor,
            "must be > 1",
        )
        for key in ("spike_budget", "desync_every", "slow_rank_every"):
            value = vars(self)[key]
            require(value >= 0, f"guard.{key}", value, "must be ≥ 0")
        rows = self.inject_nan_rows
        require(all(row >= 0 for row in rows), "guard.inject_nan_rows", rows, "must be ≥ 0")
