"""Which checkpoints stay."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from roberta_dist.checkpoint.format import (
    REPLACED,
    TEMPORARY,
    TRAIN_STATE,
    step_folder,
    temporary_folder,
)
from roberta_dist.config.train import CheckpointConfig
from roberta_dist.runtime.rundir import complete_steps


def steps_to_delete(
    steps: Sequence[int], config: CheckpointConfig, best_step: int | None
) -> list[int]:
    """Steps the policy lets go; the newest always stays.

    Example: keep_last=2, keep_every=100, steps 50, 100, 150, 200 → [50].
    """
    kept = set(sorted(steps)[-config.keep_last :])
    if config.keep_every:
        kept |= {step for step in steps if step % config.keep_every == 0}
    if config.keep_best and best_step is not None:
        kept.add(best_step)
    return [step for step in sorted(steps) if step not in kept]


def delete_old(checkpoints: Path, config: CheckpointConfig, best_step: int | None) -> None:
    """Apply the policy.

    What goes loses its name first, so that a kill leaves no half checkpoint; what it leaves under the
    other name, the next start clears.
    """
    steps = complete_steps(checkpoints)
    if config.keep_best and best_step is not None and best_step not in steps:
        # its save failed: the best that is there must stay
        best_step = _best_of(checkpoints, steps)
    for step in steps_to_delete(steps, config, best_step):
        going = temporary_folder(checkpoints, step)
        shutil.rmtree(going, ignore_errors=True)
        step_folder(checkpoints, step).rename(going)
        shutil.rmtree(going, ignore_errors=True)


def _best_of(checkpoints: Path, steps: Sequence[int]) -> int | None:
    """The last of `steps` that one of these checkpoints names as its best."""
    for step in sorted(steps, reverse=True):
        with suppress(OSError, ValueError):
            state = json.loads((step_folder(checkpoints, step) / TRAIN_STATE).read_bytes())
            if (best := state.get("best_step")) in steps:
                return int(best)
    return None


def remove_leftovers(checkpoints: Path) -> None:
    """Clear what a kill in the middle of a save left behind; a folder in transit gets its name back."""
    for folder in checkpoints.glob(f"{REPLACED}*"):
        own = folder.with_name(folder.name.removeprefix(REPLACED))
        if own.exists():
            shutil.rmtree(folder, ignore_errors=True)
        else:
            folder.rename(own)
    for folder in checkpoints.glob(f"{TEMPORARY}*"):
        shutil.rmtree(folder, ignore_errors=True)
