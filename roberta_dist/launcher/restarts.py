"""Whether a world that broke is started again, and when."""

from __future__ import annotations

from roberta_dist.config.cluster import ClusterConfig


class Restarts:
    """Counts the restarts in a row that reached no new checkpoint.

    Example: restarts=2, restart_delay_s=5 → 5 s, 10 s, no more; after progress 5 s again.
    """

    def __init__(self, cluster: ClusterConfig) -> None:
        self._most = cluster.restarts
        self._first_s = cluster.restart_delay_s
        self._without_progress = 0

    def delay(self, progress: bool) -> float | None:
        """Seconds to wait before the next start; None if there is to be none.

        Args:
            progress: the attempt that ended made a checkpoint.
        """
        if progress:
            self._without_progress = 0
        if self._without_progress >= self._most:
            return None
        self._without_progress += 1
        return float(self._first_s * 2 ** (self._without_progress - 1))
