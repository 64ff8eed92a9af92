"""`data` and `masking`: what a worker reads and which tokens it hides."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from roberta_dist.config.fields import free, identity, require


class InputFormat(str, Enum):
    """How packs become sequences (RoBERTa §4.2)."""

    full_sentences = "full_sentences"
    blocks = "blocks"


@dataclass(frozen=True)
class DataConfig:
    """Which corpus, in which shape, in which order."""

    path: str = free("corpora/docstrings")
    """Folder written by `roberta-dist prepare`; identity is its manifest's hash, not its path."""
    format: InputFormat = identity(InputFormat.full_sentences)
    """`full_sentences`: whole sentences up to the length; `blocks`: contiguous, always full."""
    sequence_length: int = identity(512)
    """Tokens in a row, specials included."""
    shuffle_mib: float = identity(4096.0)
    """MiB of packs in flight over the whole cluster: more shuffles better, less saves memory."""
    cache_mib: float = free(0.0)
    """MiB of decoded packs a rank may hold; 0 derives it from `shuffle_mib` and the world."""
    prefetch_steps: int = free(2)
    """Steps the reading thread runs ahead."""

    def __post_init__(self) -> None:
        require(
            8 <= self.sequence_length <= 65_000,
            "data.sequence_length",
            self.sequence_length,
            "must be in [8, 65000]",
        )
        require(self.shuffle_mib > 0, "data.shuffle_mib", self.shuffle_mib, "must be positive")
        require(self.prefetch_steps >= 1, "data.prefetch_steps", self.prefetch_steps, "must be ≥ 1")


@dataclass(frozen=True)
class MaskingConfig:
    """Dynamic masking: a pure function of (seed, global row, position)."""

    probability: float = identity(0.15)
    """Chance that a position which is not a special token is predicted."""
    mask_fraction: float = identity(0.8)
    """Of the predicted positions, the share replaced by `<mask>`."""
    random_fraction: float = identity(0.1)
    """Of the predicted positions, the share replaced by a random token; the rest stay."""

    def __post_init__(self) -> None:
        require(
            0.0 < self.probability < 1.0,
            "masking.probability",
            self.probability,
            "must be in (0, 1)",
        )
        require(
            min(self.mask_fraction, self.random_fraction) >= 0.0
            and self.mask_fraction + self.random_fraction <= 1.0,
            "masking.mask_fraction + masking.random_fraction",
            self.mask_fraction + self.random_fraction,
            "both must be ≥ 0 and their sum ≤ 1",
        )
