"""`evaluate` and `track`: what is measured and where it is written."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from roberta_dist.config.fields import free, identity, require


@dataclass(frozen=True)
class EvaluateConfig:
    """Held-out masked-language-model loss with fixed masks."""

    every_steps: int = free(1000)
    """Evaluate every so many steps, and at the end; 0 never."""
    max_rows: int = free(2048)
    """Held-out rows measured, the same ones each time; 0 measures all."""
    seed: int = identity(0)
    """Seed of the fixed masks."""
    batch_size: int = free(64)
    """Rows in one forward pass of a rank."""

    def __post_init__(self) -> None:
        for key in ("every_steps", "max_rows", "seed"):
            value = vars(self)[key]
            require(value >= 0, f"evaluate.{key}", value, "must be ≥ 0")
        require(self.batch_size > 0, "evaluate.batch_size", self.batch_size, "must be positive")


class WandbMode(str, Enum):
    """Whether Weights & Biases is used."""

    disabled = "disabled"
    offline = "offline"
    online = "online"


class Upload(str, Enum):
    """Where `report` rebuilds a run from its metrics."""

    none = "none"
    wandb = "wandb"


class UploadMode(str, Enum):
    """Whether an upload leaves this machine at once."""

    offline = "offline"
    online = "online"


@dataclass(frozen=True)
class TrackConfig:
    """`metrics.jsonl` is always written; the rest is optional."""

    wandb: WandbMode = free(WandbMode.offline)
    """`offline` writes RUN/wandb and sends nothing, even where a key is found."""
    wandb_project: str = free("roberta_dist")
    """W&B project of the run."""
    wandb_name: str | None = free(None)
    """W&B display name; null uses the run folder's name."""
    tensorboard: bool = free(True)
    """Write RUN/tensorboard."""
    progress: bool = free(True)
    """Rank 0 shows a progress bar."""
    log_every: int = free(1)
    """Write a metrics line every so many steps."""
    layers_every: int = free(100)
    """Measure gradient norm, update / weight and trust ratio of each layer every so many steps; 0 never."""

    def __post_init__(self) -> None:
        require(self.log_every > 0, "track.log_every", self.log_every, "must be ≥ 1")
        require(
            self.layers_every >= 0,
            "track.layers_every",
            self.layers_every,
            "must be ≥ 0 (0 is off)",
        )
