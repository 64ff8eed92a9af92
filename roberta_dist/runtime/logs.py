"""Logging: rank 0 tells people, every rank keeps its own file. A filter, not `if rank == 0`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from roberta_dist.runtime.world import World

LOGGER = logging.getLogger("roberta_dist")


def setup_logging(world: World, log_file: Path | None = None) -> None:
    """Console: INFO on rank 0, WARNING elsewhere. `log_file`: everything, this rank only."""
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    for handler in list(LOGGER.handlers):
        LOGGER.removeHandler(handler)
        handler.close()
    console = logging.StreamHandler(sys.stderr)
    console.setLevel(logging.INFO if world.is_main else logging.WARNING)
    prefix = "" if world.world_size == 1 else f"[rank {world.rank}] "
    console.setFormatter(logging.Formatter(f"%(asctime)s {prefix}%(message)s", "%H:%M:%S"))
    LOGGER.addHandler(console)
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        to_file = logging.FileHandler(log_file)
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        LOGGER.addHandler(to_file)
