"""Writing and reading checkpoints through the layout, so that no world is remembered."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from roberta_dist.checkpoint.format import (
    COMPLETE,
    CONFIG,
    FORMAT_VERSION,
    INDEX,
    SHARDS,
    TRAIN_STATE,
    WEIGHT,
    FragmentEntry,
    fragment_key,
    shard_name,
    step_folder,
    temporary_folder,
)
from roberta_dist.checkpoint.reader import Checkpoint, FragmentReader, recorded_files, verify
from roberta_dist.engine.layout import (
    Fragment,
    flat_tensors,
    held_fragments,
    owned_fragments,
    publish_master_weights,
    whole_shape,
)
from roberta_dist.errors import DataFault, RobertaDistError, StorageError
from roberta_dist.optim.backends import set_step
from roberta_dist.optim.build import MOMENTS
from roberta_dist.runtime.dist import any_rank, barrier, gather_to_main
from roberta_dist.runtime.files import (
    atomic_write,
    file_sha256,
    fsync_file,
    fsync_folder,
    storage_errors,
    write_json,
)
from roberta_dist.runtime.world import World

LOGGER = logging.getLogger(__name__)
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


def _write_shard(engine: Any, folder: Path, world: World) -> list[FragmentEntry]:
    path = folder / shard_name(world.rank)
    fragments = owned_fragments(engine, world.rank, world.world_size)
    tensors = {
        fragment_key(kind, fragment.name, fragment.start): _kind_view(engine, fragment, kind)
        .to("cpu", torch.float32)
        .clone()
        for fragment in fragments
        for kind in KINDS
    }
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, path)
        except SafetensorError as error:  # safetensors wraps the OSError of a full disk
            full = "os error 28" in str(error)
            raise StorageError(
                f"{path}: {'no space left on the disk' if full else error}", "free space, run again"
            ) from error
        fsync_file(path)
    return [FragmentEntry(f.name, f.start, f.length, shard_name(world.rank)) for f in fragments]


def save_checkpoint(
    engine: Any,
    checkpoints: Path,
    step: int,
    world: World,
    train_state: Mapping[str, Any],
    config_yaml: str,
) -> Path:
    """Write `step` so that it is either whole or absent; every rank calls this.

    Raises:
        StorageError: on every rank when one could not write; nothing is left behind.
    """
    ensure_optimizer_state(engine, int(train_state["optimizer_step"]))
    device = next(iter(flat_tensors(engine))).device
    temporary = temporary_folder(checkpoints, step)
    failure: RobertaDistError | None = None
    if world.is_main:
        shutil.rmtree(temporary, ignore_errors=True)
    barrier()
    entries: list[FragmentEntry] = []
    try:
        entries = _write_shard(engine, temporary, world)
    except StorageError as error:
        failure = error
    gathered = gather_to_main(entries)
    if world.is_main and failure is None:
        try:
            _finish(engine, temporary, step, gathered, train_state, config_yaml)
        except StorageError as error:
            failure = error
    final = step_folder(checkpoints, step)
    if any_rank(failure is not None, device):
        barrier()
        if world.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise failure or StorageError(
            f"{final}: another rank could not write its part", "see that rank's log"
        )
    if world.is_main:
        if final.exists():  # the same step saved by an earlier attempt
            shutil.rmtree(final)
        temporary.rename(final)
        fsync_folder(checkpoints)
    barrier()
    return final


def _finish(
    engine: Any,
    folder: Path,
    step: int,
    entries: list[list[FragmentEntry]],
    train_state: Mapping[str, Any],
    config_yaml: str,
) -> None:
    shapes = {name: list(whole_shape(p)) for name, p in engine.module.named_parameters()}
    write_json(
        folder / INDEX,
        {
            "format_version": FORMAT_VERSION,
            "step": step,
            "kinds": list(KINDS),
            "shapes": shapes,
            "fragments": [vars(entry) for rank in entries for entry in rank],
        },
    )
    write_json(folder / TRAIN_STATE, dict(train_state))
    atomic_write(folder / CONFIG, config_yaml)
    fsync_folder(folder / SHARDS)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with storage_errors(folder):
        sums = {
            str(path.relative_to(folder)): {
                "bytes": path.stat().st_size,
                "sha256": file_sha256(path),
            }
            for path in files
        }
    write_json(folder / COMPLETE, {"format_version": FORMAT_VERSION, "files": sums})


def load_checkpoint(engine: Any, checkpoint: Checkpoint, world: World) -> None:
    """Read what this rank holds: weights, moments and the optimizer's step.

    Raises:
        DataFault: a file is damaged (ranks share the checking), or the model is another one.
    """
    _verify_together(checkpoint.folder, world, next(iter(flat_tensors(engine))).device)
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
    ensure_optimizer_state(engine, int(checkpoint.train_state["optimizer_step"]))
    reader = FragmentReader(checkpoint)
    for fragment in held_fragments(engine):
        for kind in KINDS:
            values = reader.read(kind, fragment.name, fragment.start, fragment.length)
            _kind_view(engine, fragment, kind).copy_(torch.from_numpy(values))
    publish_master_weights(engine)


def _verify_together(folder: Path, world: World, device: torch.device) -> None:
    failure: DataFault | None = None
    try:
        verify(folder, recorded_files(folder)[world.rank :: world.world_size])
    except DataFault as error:
        failure = error
    if any_rank(failure is not None, device):
        raise failure or DataFault(f"{folder}: another rank found a damaged file")
