"""A worker that gets a SIGTERM in the middle of one thing: `signal_worker.py PHASE RUN/config.yaml`.

The call that stands for the phase is wrapped; what it does stays as it is. Rank 1 alone is signalled,
or the only rank there is.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from roberta_dist.engine import engine as engine_module
from roberta_dist.engine import saver as saver_module
from roberta_dist.engine.engine import TrainEngine
from roberta_dist.runtime.leave import end_process
from roberta_dist.stream.loader import Prefetcher
from roberta_dist.train import build as build_module
from roberta_dist.train.__main__ import main

PLACES: dict[str, tuple[Any, str, int]] = {
    "start-up": (build_module, "check_shards", 1),
    "data loading": (Prefetcher, "take", 14),
    "forward": (TrainEngine, "_micro_step", 25),
    "optimizer step": (TrainEngine, "_apply", 14),
    "save": (saver_module, "write_tensors", 1),
    "evaluation": (engine_module, "measure", 1),
}
"""Phase → what is called in it, and the call that is interrupted."""


def interrupt(phase: str) -> None:
    """Send the signal on entry of the call."""
    owner, name, when = PLACES[phase]
    inner: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def outer(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == when:
            os.kill(os.getpid(), signal.SIGTERM)
        return inner(*args, **kwargs)

    setattr(owner, name, outer)


if __name__ == "__main__":
    if int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
        interrupt(sys.argv[1])
    end_process(main(sys.argv[2:]))
