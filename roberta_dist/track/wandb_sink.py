"""Weights & Biases: off, offline (default) or online; never text, code or facts of the machine.

Offline never touches a network. Online waits for one at most INIT_TIMEOUT_S at the start and
FINISH_TIMEOUT_S at the end; what was not sent lies in RUN/wandb for `wandb sync`.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from roberta_dist.config.watch import TrackConfig, WandbMode
from roberta_dist.runtime.files import atomic_write

LOGGER = logging.getLogger(__name__)
INIT_TIMEOUT_S = 30.0
FINISH_TIMEOUT_S = 60.0


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
    config: TrackConfig, run_dir: Path, hyperparameters: Mapping[str, Any]
) -> list[WandbSink]:
    """The sink, or nothing when W&B is disabled or cannot start (a warning).

    Online without an answer in 30 s goes on offline: `wandb sync` can send it later.
    """
    if config.wandb is WandbMode.disabled:
        return []
    # offline too, W&B tells its maker about its use and errors unless this is set before the import
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    modes = [WandbMode.offline]
    if config.wandb is WandbMode.online:
        modes.insert(0, WandbMode.online)
    for mode in modes:
        try:
            return [WandbSink(_start(config, mode, run_dir, hyperparameters))]
        except Exception as error:
            LOGGER.warning("W&B cannot start %s: %s", mode.value, error)
            _forget()
    return []


def _forget() -> None:
    """End W&B's own process, which holds the id of the run that did not start."""
    with suppress(Exception):
        import wandb

        wandb.teardown()


def _start(
    config: TrackConfig, mode: WandbMode, run_dir: Path, hyperparameters: Mapping[str, Any]
) -> Any:
    import wandb

    return wandb.init(
        mode=mode.value,
        project=config.wandb_project,
        name=config.wandb_name or run_dir.name,
        id=_run_id(run_dir),
        resume="allow",
        dir=str(run_dir),
        config={key: str(getattr(v, "value", v)) for key, v in hyperparameters.items()},
        settings=wandb.Settings(
            console="off",
            host="",  # W&B adds the machine's name where there is none
            disable_code=True,
            disable_git=True,
            save_code=False,
            x_save_requirements=False,
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            silent=True,
            init_timeout=INIT_TIMEOUT_S,
            finish_timeout=FINISH_TIMEOUT_S,
            finish_timeout_raises=True,
        ),
    )
