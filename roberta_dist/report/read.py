"""A run folder as columns of numbers. Reads files only, also those of a run that still goes on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roberta_dist.config.load import load_yaml
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.errors import ConfigError, DataFault
from roberta_dist.runtime.metrics import read_rows
from roberta_dist.runtime.remote_path import is_remote
from roberta_dist.runtime.rundir import RunPaths

Column = NDArray[np.float64]


@dataclass(frozen=True)
class RunData:
    """What a picture of a run needs.

    Attributes:
        name: of the run folder.
        config: of the newest attempt.
        environment: environment.json, empty if it is missing.
        training: metric → values [steps logged], with `step`; NaN where a number was not finite.
        held_out: the same for evaluations.
        unigram_entropy: nats a token of the held-out split, the loss of the best constant guess;
            None if the corpus is not on this machine.
    """

    name: str
    config: PretrainConfig
    environment: dict[str, Any]
    training: dict[str, Column]
    held_out: dict[str, Column]
    unigram_entropy: float | None


def read_run(run_dir: Path) -> RunData:
    """Read `run_dir`.

    Raises:
        ConfigError: not a run folder, or nothing has been logged yet.
        DataFault: a line of metrics.jsonl is damaged.
    """
    paths = existing_run(run_dir)
    rows = read_rows(paths.metrics)
    training = columns([row for row in rows if "loss" in row])
    if not training["step"].size:
        raise ConfigError(f"{paths.metrics}: no step is logged yet", "wait for the first step")
    config = load_yaml(PretrainConfig, paths.config_yaml)
    return RunData(
        name=run_dir.absolute().name,
        config=config,
        environment=_read_json(paths.environment_json) or {},
        training=training,
        held_out=columns([row for row in rows if "eval_loss" in row]),
        unigram_entropy=_held_out_entropy(config.data.locations),
    )


def existing_run(run_dir: Path) -> RunPaths:
    """The paths of a run that has started.

    Raises:
        ConfigError: not a run folder.
    """
    paths = RunPaths(run_dir)
    if not (paths.metrics.is_file() and paths.config_yaml.is_file()):
        raise ConfigError(
            f"run_dir={run_dir}: metrics.jsonl or config.yaml is missing, so there is no run",
            "give the run_dir of a run that has started",
        )
    return paths


def columns(rows: list[dict[str, Any]]) -> dict[str, Column]:
    """Metric → values of all rows, NaN where a row has none."""
    names = {"step"}.union(*rows)
    missing = float("nan")
    return {
        name: np.array(
            [missing if row.get(name) is None else row[name] for row in rows], dtype=np.float64
        )
        for name in sorted(names)
    }


def _held_out_entropy(corpora: dict[str, str]) -> float | None:
    """Of a single corpus on this machine: several have no common one, and others are not read."""
    corpus = next(iter(corpora.values()))
    if len(corpora) > 1 or is_remote(corpus):
        return None
    manifest = _read_json(Path(corpus) / "held_out" / "manifest.json")
    return float(manifest["unigram_entropy"]) if manifest else None


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return value
    except ValueError as error:
        raise DataFault(f"{path}: not valid JSON ({error})") from error
