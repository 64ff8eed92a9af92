"""`cluster`: where workers run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from roberta_dist.config.fields import free, require


class ClusterKind(str, Enum):
    """Where the launcher starts workers."""

    local = "local"


@dataclass(frozen=True)
class ClusterConfig:
    """Workers of one launch."""

    kind: ClusterKind = free(ClusterKind.local)
    """`local`: this machine, through the `deepspeed` launcher."""
    workers_per_node: int = free(0)
    """Worker processes on a node; 0 means one an accelerator, or 1 without any."""
    threads_per_worker: int = free(0)
    """OMP_NUM_THREADS of a worker; 0 shares the cores out evenly."""
    restarts: int = free(3)
    """Times in a row that `launch` starts the world again after a rank died or hung, without a new
    checkpoint in between; 0 never does."""
    restart_delay_s: float = free(5.0)
    """Seconds before the first of them, doubled for each that follows."""
    shrink: bool = free(False)
    """Start again with one worker less each time, down to 1."""
    master_port: int = free(0)
    """Port of the rendezvous; 0 takes a free one."""

    def __post_init__(self) -> None:
        for key in ("workers_per_node", "threads_per_worker", "restarts", "restart_delay_s"):
            value = vars(self)[key]
            require(value >= 0, f"cluster.{key}", value, "must be ≥ 0")
        require(
            0 <= self.master_port <= 65_535,
            "cluster.master_port",
            self.master_port,
            "must be in [0, 65535]",
        )
