"""World: which of how many processes this is. Detected once, then passed along."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from roberta_dist.errors import ConfigError

TRANSPORT_VARIABLE = "ROBERTA_DIST_TRANSPORT"
"""Set to `srun` by our job script: ranks are SLURM's tasks. SLURM's own variables tell nothing: they are
there in a shell of `salloc` too."""


@dataclass(frozen=True)
class World:
    """Rank and size of this process in the data-parallel world."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(
                f"RANK={self.rank}: must be in [0, WORLD_SIZE={self.world_size})",
                "unset RANK and WORLD_SIZE, or start through `roberta-dist launch`",
            )

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes run files and talks to people."""
        return self.rank == 0


def detect_world(environ: Mapping[str, str] = os.environ) -> World:
    """The world from RANK, WORLD_SIZE and LOCAL_RANK; a single process where they are not set."""
    try:
        return World(
            rank=int(environ.get("RANK", "0")),
            world_size=int(environ.get("WORLD_SIZE", "1")),
            local_rank=int(environ.get("LOCAL_RANK", "0")),
        )
    except ValueError as error:
        raise ConfigError(
            f"RANK, WORLD_SIZE or LOCAL_RANK: {error}", "unset them, or set all three to integers"
        ) from error


def adopt_tasks(environ: MutableMapping[str, str]) -> None:
    """RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_SIZE from SLURM's variables, where our script says so.

    Call it before DeepSpeed is imported, which looks for MPI where they are missing.

    Raises:
        ConfigError: srun did not start this process.
    """
    if environ.get(TRANSPORT_VARIABLE) != "srun":
        return
    try:
        sizes = _expanded(environ["SLURM_STEP_TASKS_PER_NODE"])
        environ["RANK"] = environ["SLURM_PROCID"]
        environ["WORLD_SIZE"] = environ["SLURM_STEP_NUM_TASKS"]
        environ["LOCAL_RANK"] = environ["SLURM_LOCALID"]
        environ["LOCAL_SIZE"] = str(sizes[int(environ["SLURM_NODEID"])])
    except (KeyError, ValueError, IndexError) as error:
        raise ConfigError(
            f"{TRANSPORT_VARIABLE}=srun, but SLURM's variables of a task are not whole ({error})",
            f"start workers by srun, or unset {TRANSPORT_VARIABLE}",
        ) from error


def _expanded(counts: str) -> list[int]:
    """SLURM's run lengths: `2(x3),1` is 2, 2, 2, 1."""
    sizes: list[int] = []
    for part in counts.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise ValueError(counts)
        sizes += [int(match[1])] * int(match[2] or 1)
    return sizes
