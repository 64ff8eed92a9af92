"""`report upload=wandb`: metrics.jsonl as one W&B run, whatever became of the attempts that wrote it.

Offline, each attempt leaves a folder of its own in RUN/wandb. They overlap where a kill or a rollback
had steps done again, and `wandb sync` makes no clean curve of them: by its version it puts one in the
place of the other or behind it. metrics.jsonl has every step once, so a run is made of it, in
RUN/upload/wandb and under an id of its own: what the attempts sent is neither changed nor continued.

The id stays, in run_id beside the run, so that a second upload doubles nothing. Here it replaces what
the first wrote; on the server W&B overwrites a run that comes again under its id and is not resumed.
Whoever wants another run there removes RUN/upload. A time axis shows the time of the upload.
"""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

from tqdm import tqdm

from roberta_dist.config.load import flatten, load_yaml
from roberta_dist.config.roots import PretrainConfig, ReportConfig
from roberta_dist.config.train import AUTO
from roberta_dist.config.watch import UploadMode
from roberta_dist.errors import ConfigError, DataFault, RobertaDistError
from roberta_dist.report.read import existing_run
from roberta_dist.runtime.files import storage_errors
from roberta_dist.runtime.metrics import read_rows
from roberta_dist.runtime.rundir import RunPaths
from roberta_dist.track.wandb_sink import start_run

NOT_METRICS = {"step", "time"}
SEND_TIMEOUT_S = 3600.0
"""Most to wait, online, for a server to take all of a run."""


def upload_run(config: ReportConfig) -> None:
    """Make one W&B run of `config.run_dir` and print where it lies.

    Raises:
        ConfigError: not a run folder, or W&B cannot start.
        DataFault: metrics.jsonl is damaged or has a number twice.
        StorageError: the folder cannot be written.
        RobertaDistError: not everything was sent in time.
    """
    run_dir = Path(config.run_dir).expanduser()
    paths = existing_run(run_dir)
    rows = read_rows(paths.metrics)
    check_order(rows, paths.metrics)
    _remove_earlier(paths.upload)
    run = _start(config, paths)
    folder = Path(run.dir).parent
    sync = f"wandb sync {shlex.quote(str(folder))}"
    try:
        with run:
            for row in tqdm(rows, "uploading", unit="line"):
                run.log(_numbers(row), step=row["step"])
    except TimeoutError as error:
        raise RobertaDistError(
            f"upload=wandb: not all was sent within {SEND_TIMEOUT_S:.0f} s", f"send it with {sync}"
        ) from error
    if config.upload_mode is UploadMode.online:
        print(f"W&B run of {len(rows):,} lines: {run.url}, kept in {folder}")
    else:
        print(f"W&B run of {len(rows):,} lines: {folder}\nsend it with: {sync}")


def check_order(rows: list[dict[str, Any]], path: Path) -> None:
    """Steps must come in their order, as W&B leaves out one that is behind, and each number once.

    A step may have two lines, that of training and that of an evaluation, which W&B joins.

    Args:
        rows: the lines of `path`.
        path: metrics.jsonl.

    Raises:
        DataFault: a step after a later one, or a number that its step already has.
    """
    last, seen = -1, set[str]()
    for line, row in enumerate(rows, start=1):
        step, names = row["step"], row.keys() - NOT_METRICS
        if step > last:
            last, seen = step, set()
        twice = sorted(seen & names)
        if step < last or twice:
            problem = f"has {', '.join(twice)} again" if twice else f"comes after step {last}"
            raise DataFault(
                f"{path}: line {line}: step {step} {problem}; steps must be in order, each once",
                "keep the lines of one attempt and remove the others",
            )
        seen |= names


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    """The metrics of a line without those that were not finite, which it has as null."""
    return {
        name: value
        for name, value in row.items()
        if name not in NOT_METRICS and isinstance(value, int | float)
    }


def _remove_earlier(folder: Path) -> None:
    """Remove what an earlier call made; its id stays."""
    for earlier in folder.glob("wandb/*run-*"):
        with storage_errors(earlier):
            shutil.rmtree(earlier)


def _start(config: ReportConfig, paths: RunPaths) -> Any:
    run_config = load_yaml(PretrainConfig, paths.config_yaml)
    try:
        return start_run(
            config.upload_mode,
            paths.upload,
            run_config.track.wandb_project,
            run_config.track.wandb_name or paths.root.absolute().name,
            _hyperparameters(run_config, paths),
            finish_timeout_s=SEND_TIMEOUT_S,
        )
    except RobertaDistError:
        raise
    except Exception as error:
        raise ConfigError(
            f"upload=wandb: W&B cannot start {config.upload_mode.value}: {error}",
            "upload_mode=offline writes a run that `wandb sync` can send later"
            if config.upload_mode is UploadMode.online
            else "",
        ) from error


def _hyperparameters(config: PretrainConfig, paths: RunPaths) -> dict[str, Any]:
    """Those that a run that goes on logs: the micro-batch is the one that `auto` found."""
    hyperparameters = flatten(config)
    if config.train.micro_batch_size == AUTO and paths.micro_batch_json.is_file():
        found = json.loads(paths.micro_batch_json.read_text(encoding="utf-8"))
        hyperparameters["train.micro_batch_size"] = found["micro_batch_size"]
    return hyperparameters
