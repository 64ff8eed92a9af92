"""From which checkpoint a start goes on: the newest one that is whole."""

from __future__ import annotations

import logging
import shutil
from functools import partial
from pathlib import Path

from roberta_dist.checkpoint.reader import (
    Checkpoint,
    open_checkpoint,
    recorded_files,
    verify,
)
from roberta_dist.config.train import CheckpointConfig
from roberta_dist.errors import ConfigError, DataFault
from roberta_dist.runtime.dist import gather_everywhere, on_main
from roberta_dist.runtime.rundir import DAMAGED, RunPaths, starting_steps, step_folders
from roberta_dist.runtime.world import World
from roberta_dist.train.retention import remove_leftovers

LOGGER = logging.getLogger(__name__)


def newest_whole(checkpoints: Path, config: CheckpointConfig, world: World) -> Checkpoint | None:
    """The newest checkpoint whose every file has its size and sha256; None if there is none at all.

    Every rank calls this, and checks a share of the files. A damaged one is renamed, so that nothing
    counts it any more and nothing deletes it.

    Raises:
        DataFault: on every rank: the newest is damaged and `checkpoint.strict` is set, or all are.
        ConfigError: on every rank: the newest is of another format version.
    """
    on_main(lambda: remove_leftovers(checkpoints))
    folders = on_main(lambda: step_folders(checkpoints))
    damaged: list[tuple[Path, DataFault]] = []
    found: Checkpoint | None = None
    for folder in reversed(folders):
        fault = fault_of(folder, world)
        if fault is None:
            found = on_main(partial(open_checkpoint, folder))
            break
        if config.strict:
            raise DataFault(
                f"{fault.problem} (checkpoint.strict=true)",
                "remove that checkpoint, or set checkpoint.strict=false to go on from the one before",
            )
        damaged.append((folder, fault))
    if damaged and found is None:
        problems = "; ".join(fault.problem for _, fault in damaged)
        raise DataFault(
            f"{checkpoints}: no checkpoint is whole: {problems}",
            "bring one back, or start again with another run_dir=",
        )
    for folder, fault in damaged:
        LOGGER.warning("%s; set aside, going on from %s", fault.problem, found and found.folder)
        on_main(partial(_set_aside, folder))
    return found


def refuse_anew(paths: RunPaths) -> None:
    """Refuse to begin a run that went on from a checkpoint once and has none now.

    Raises:
        ConfigError: it would start from nothing, in silence.
    """
    reached = max(starting_steps(paths), default=0)
    if reached:
        raise ConfigError(
            f"{paths.checkpoints}: no checkpoint is there, and the run went on from step {reached} before",
            f"bring them back (is the file system mounted?), or begin anew with another run_dir=, or in "
            f"this one without {paths.attempts_log}",
        )


def fault_of(folder: Path, world: World) -> DataFault | None:
    """What is wrong with a checkpoint, the same on every rank.

    Raises:
        ConfigError: on every rank: nothing is, but this version does not read it.
    """
    own: DataFault | ConfigError | None = None
    try:
        verify(folder, recorded_files(folder)[world.rank :: world.world_size])
        if world.is_main:
            open_checkpoint(folder)
    except (DataFault, ConfigError) as error:
        own = error
    found = [fault for fault in gather_everywhere(own) if fault is not None]
    for fault in found:
        if isinstance(fault, ConfigError):
            raise fault
    return next((fault for fault in found if isinstance(fault, DataFault)), None)


def _set_aside(folder: Path) -> None:
    aside = folder.with_name(DAMAGED + folder.name)
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
