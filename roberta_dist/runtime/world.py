"""World: which of how many processes this is. Detected once, then passed along."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from roberta_dist.errors import ConfigError


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
