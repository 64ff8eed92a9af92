"""Weights & Biases: off, offline (default) or online; never a wait for the network, never text."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roberta_dist.config.watch import TrackConfig, WandbMode
from roberta_dist.runtime.files import atomic_write

LOGGER = logging.getLogger(__name__)


class WandbSink:
    """One W&B run; a resume keeps its id."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send (online) or write (offline) one row."""
        self._run.log(dict(metrics), step=step)

    def flush(self) -> None:
        """W&B writes by itself."""

    def close(self) -> None:
        """End the run."""
        self._run.finish()


def _run_id(run_dir: Path) -> str:
    path = run_dir / "wandb" / "run_id"
    if not path.is_file():
        atomic_write(path, uuid.uuid4().hex[:12])
    return path.read_text().strip()


def open_wandb(
    config: TrackConfig, run_dir: Path, resume_step: int, hyperparameters: Mapping[str, Any]
) -> list[WandbSink]:
    """The sink, or nothing when W&B is disabled or cannot start (a warning)."""
    if config.wandb is WandbMode.disabled:
        return []
    # offline too, W    # W&B reports its own use and errors to its maker, offline too, unless told before it is importedB tells its maker about its use and errors unless this is set before the import
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    try:
        import wandb

        run = wandb.init(
            mode=config.wandb.value,
            project=config.wandb_project,
            name=config.wandb_name or run_dir.name,
            id=_run_id(run_dir),
            resume="allow",
            dir=str(run_dir),
            config={key: str(getattr(v, "value", v)) for key, v in hyperparameters.items()},
            settings=wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                save_code=False,
                x_save_requirements=False,
                x_disable_stats=True,
                x_disable_meta=True,
                x_disable_machine_info=True,
                silent=True,
                init_timeout=30,
            ),
        )
    except Exception as error:
        LOGGER.warning("W&B is left out: %s", error)
        return []
    return [WandbSink(run)]
