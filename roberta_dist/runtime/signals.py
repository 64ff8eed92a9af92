"""Stop requests: a signal sets a flag; the loop agrees on it and saves at a step boundary."""

from __future__ import annotations

import signal
from types import FrameType

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Set by the first SIGTERM, SIGINT or SIGUSR1; a SIGINT after that ends the process at once.

    The handler only sets a flag: standard output may be gone by then, and saving needs all ranks.
    A second SIGTERM means nothing new: SLURM sends it twice for one scancel.
    """

    def __init__(self) -> None:
        self.signum = 0

    def install(self) -> None:
        """Take over the three signals; call it first thing in a worker."""
        for signum in HANDLED:
            signal.signal(signum, self._handle)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum and signum == signal.SIGINT:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        self.signum = signum

    @property
    def requested(self) -> bool:
        """True once a signal came."""
        return self.signum != 0
