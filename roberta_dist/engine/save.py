"""A rank's part of a checkpoint, out of the engine and into it, through the layout.

So no world is remembered: any other reads what it owns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from roberta_dist.checkpoint.format import WEIGHT, FragmentEntry, fragment_key, shard_name
from roberta_dist.checkpoint.reader import Checkpoint, FragmentReader
from roberta_dist.engine.layout import (
    Fragment,
    flat_tensors,
    held_fragments,
    owned_fragments,
    publish_master_weights,
    whole_shape,
)
from roberta_dist.errors import DataFault
from roberta_dist.optim.backends import set_step
from roberta_dist.optim.build import MOMENTS
from roberta_dist.runtime.world import World

KINDS = (WEIGHT, *MOMENTS)


def ensure_optimizer_state(engine: Any, optimizer_step: int) -> None:
    """Give every flat tensor its moments and step, as the optimizer's first update would."""
    flats = flat_tensors(engine)
    for flat in flats:
        state = engine.basic_optimizer.state[flat]
        for moment in MOMENTS:
            if moment not in state:
                state[moment] = torch.zeros_like(flat.detach())
    set_step(engine.basic_optimizer, flats, optimizer_step)


def _kind_view(engine: Any, fragment: Fragment, kind: str) -> Tensor:
    whole = fragment.flat if kind == WEIGHT else engine.basic_optimizer.state[fragment.flat][kind]
    return fragment.view(whole)


@dataclass(frozen=True)
class Snapshot:
    """What a rank owns at one step, in host memory and apart from what trains on.

    Attributes:
        tensors: key in the shard → 1-D values.
        entries: where each lies, for the index.
        shapes: of every parameter of the model.
    """

    tensors: dict[str, NDArray[np.float32]]
    entries: list[FragmentEntry]
    shapes: dict[str, list[int]]

    @property
    def nbytes(self) -> int:
        """Of the tensors."""
        return sum(array.nbytes for array in self.tensors.values())


def take_snapshot(engine: Any, world: World, optimizer_step: int) -> Snapshot:
    """Copy this rank's part of weights and moments; the only thing that a step waits for."""
    ensure_optimizer_state(engine, optimizer_step)
    copies: dict[str, Tensor] = {}
    fragments = owned_fragments(engine, world.rank, world.world_size)
    for fragment in fragments:
        for kind in KINDS:
            view = _kind_view(engine, fragment, kind)
            copy = torch.empty(view.shape, dtype=torch.float32, pin_memory=view.is_cuda)
            copies[fragment_key(kind, fragment.name, fragment.start)] = copy
            copy.copy_(view, non_blocking=True)
    if any(copy.is_pinned() for copy in copies.values()):
        torch.cuda.synchronize()
    shard = shard_name(world.rank)
    return Snapshot(
        {key: copy.numpy() for key, copy in copies.items()},
        [FragmentEntry(f.name, f.start, f.length, shard) for f in fragments],
        {name: list(whole_shape(p)) for name, p in engine.module.named_parameters()},
    )


def load_checkpoint(engine: Any, checkpoint: Checkpoint, with_optimizer: bool = True) -> None:
    """Read what this rank holds, of files that were verified: weights, and moments and optimizer's step.

    Args:
        engine: DeepSpeed's.
        checkpoint: of any world and stage.
        with_optimizer: or leave the moments at 0.

    Raises:
        DataFault: the model is another one, or a file cannot be read.
    """
    ours = {name: whole_shape(p) for name, p in engine.module.named_parameters()}
    if ours != checkpoint.shapes:
        different = sorted(
            name
            for name in ours.keys() | checkpoint.shapes.keys()
            if ours.get(name) != checkpoint.shapes.get(name)
        )
        raise DataFault(
            f"{checkpoint.folder}: parameters differ from the model's: {', '.join(different[:5])}",
            "start with the model configuration of the run",
        )
    updates = int(checkpoint.train_state["optimizer_step"]) if with_optimizer else 0
    ensure_optimizer_state(engine, updates)
    reader = FragmentReader(checkpoint)
    for fragment in held_fragments(engine):
        for kind in KINDS if with_optimizer else (WEIGHT,):
            values = reader.read(kind, fragment.name, fragment.start, fragment.length)
            _kind_view(engine, fragment, kind).copy_(torch.from_numpy(values))
    publish_master_weights(engine)
