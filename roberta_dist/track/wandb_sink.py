"""Weights & Biases: off, offline (default) or online; never text, code or facts of the machine.

Offline never touches a network. Online waits for one at most INIT_TIMEOUT_S at the start and
FINISH_TIMEOUT_S at the end; what was not sent lies in RUN/wandb for `wandb sync`. The only module
that imports wandb; `wandb_upload` starts its run here too, with the same settings.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from roberta_dist.config.watch import TrackConfig, UploadMode, WandbMode
from roberta_dist.runtime.files import atomic_write
from roberta_dist.runtime.remote_path import shown

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


def open_wandb(
    config: TrackConfig, run_dir: Path, hyperparameters: Mapping[str, Any]
) -> list[WandbSink]:
    """The sink, or nothing when W&B is disabled or cannot start (a warning).

    Online without an answer in 30 s goes on offline: `wandb sync` can send it later.
    """
    if config.wandb is WandbMode.disabled:
        return []
    modes = [WandbMode.offline]
    if config.wandb is WandbMode.online:
        modes.insert(0, WandbMode.online)
    name = config.wandb_name or run_dir.name
    for mode in modes:
        try:
            run = start_run(
                mode, run_dir, config.wandb_project, name, hyperparameters, resume="allow"
            )
            return [WandbSink(run)]
        except Exception as error:
            LOGGER.warning("W&B cannot start %s: %s", mode.value, error)
    return []


def start_run(
    mode: WandbMode | UploadMode,
    folder: Path,
    project: str,
    name: str,
    hyperparameters: Mapping[str, Any],
    resume: Literal["allow"] | None = None,
    finish_timeout_s: float = FINISH_TIMEOUT_S,
) -> Any:
    """Start a W&B run in `folder`/wandb, under the id that lies there.

    Args:
        mode: offline or online.
        folder: where W&B makes its own folder.
        project: W&B project.
        name: W&B display name.
        hyperparameters: group.key → value.
        resume: "allow" goes on with the run of that id; None replaces it.
        finish_timeout_s: most to wait at the end for what is still to be sent, after which
            finishing raises TimeoutError.

    Raises:
        Exception: of any kind, from W&B; no part of the run goes on then.
    """
    # offline too, W&B tells its maker about its use and errors unless this is set before the import
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    os.environ.pop("WANDB_RESUME", None)  # else it would stand in for None
    try:
        import wandb

        return wandb.init(
            mode=mode.value,
            project=project,
            name=name,
            id=_run_id(folder),
            resume=resume,
            dir=str(folder),
            config={key: shown(str(getattr(v, "value", v))) for key, v in hyperparameters.items()},
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
                finish_timeout=finish_timeout_s,
                finish_timeout_raises=True,
            ),
        )
    except Exception:
        _forget()
        raise


def _run_id(folder: Path) -> str:
    path = folder / "wandb" / "run_id"
    if not path.is_file():
        atomic_write(path, uuid.uuid4().hex[:12])
    return path.read_text().strip()


def _forget() -> None:
    """End W&B's own process, which holds the id of the run that did not start."""
    with suppress(Exception):
        import wandb

        wandb.teardown()
