"""The checkpoint on disk: world-free, named, checksummed, safetensors and JSON only.

    checkpoints/step_00001000/
        shards/rank_00000.safetensors   1-D fp32 tensors "weight/NAME@START", "exp_avg/NAME@START", ...
        index.json                      shape of each parameter; file, start and length of each fragment
        train_state.json                step, next_row, fingerprints, counts
        config.yaml                     the run's configuration
        COMPLETE                        size and sha256 of every file above; written last

A fragment is a contiguous range of a parameter flattened, so any world can read what it owns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FORMAT_VERSION = 1
WEIGHT = "weight"
"""Kind of the fp32 master weights; other kinds are the optimizer's state names."""

INDEX = "index.json"
TRAIN_STATE = "train_state.json"
CONFIG = "config.yaml"
SHARDS = "shards"
TEMPORARY = ".tmp_"
"""Before the name of a checkpoint that is being written."""
REPLACED = ".replaced_"
"""Before the name of one whose place another takes."""


@dataclass(frozen=True)
class FragmentEntry:
    """One contiguous range of one parameter in one file; every kind is stored for it."""

    name: str
    start: int
    length: int
    file: str


def fragment_key(kind: str, name: str, start: int) -> str:
    """Tensor key inside a shard file."""
    return f"{kind}/{name}@{start}"


def shard_name(rank: int) -> str:
    """File of one rank, relative to the checkpoint."""
    return f"{SHARDS}/rank_{rank:05d}.safetensors"


def step_folder(checkpoints: Path, step: int) -> Path:
    """Folder of one step."""
    return checkpoints / f"step_{step:08d}"


def temporary_folder(checkpoints: Path, step: int) -> Path:
    """Where a step is written before it is renamed."""
    return checkpoints / f"{TEMPORARY}step_{step:08d}"
