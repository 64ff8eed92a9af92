"""What every kind of launch does before and after: paths, the corpus, the resolved configuration."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from roberta_dist.config.cluster import ClusterKind
from roberta_dist.config.load import to_yaml
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.errors import ConfigError
from roberta_dist.runtime.files import atomic_write, storage_errors
from roberta_dist.runtime.remote_path import is_remote, refuse_secrets
from roberta_dist.runtime.rundir import RunPaths


def with_absolute_paths(config: PretrainConfig) -> PretrainConfig:
    """`run_dir`, `init` and local corpora as every process sees them, wherever it starts."""
    run_dir = Path(config.run_dir).expanduser().absolute()
    corpora = config.data.corpora
    data = replace(
        config.data,
        path=_absolute(config.data.path),
        cache_dir=config.data.cache_dir and _absolute(config.data.cache_dir),
        corpora=corpora and {name: _absolute(path) for name, path in corpora.items()},
    )
    init = config.init and _absolute(config.init)
    return replace(config, run_dir=str(run_dir), init=init, data=data)


def _absolute(path: str) -> str:
    return path if is_remote(path) else str(Path(path).expanduser().absolute())


def check_corpus(path: str) -> None:
    """Refuse what is no corpus before anything is written; the workers look at remote ones.

    Raises:
        ConfigError: a folder without a prepared corpus, or a path that carries a secret.
    """
    if is_remote(path):
        refuse_secrets(path)
    elif not (Path(path) / "train" / "manifest.json").is_file():
        raise ConfigError(
            f"data.path={path}: no prepared corpus there (train/manifest.json is missing)",
            f"run `roberta-dist prepare output={path}`, or give the folder that it wrote",
        )


def write_config(config: PretrainConfig, paths: RunPaths, attempt: Path) -> Path:
    """Write the resolved configuration for the workers, and return its path.

    The run's own config.yaml is written only if there is none: an attempt may be refused (an
    identity key differs), and the workers replace it when they accept.
    """
    text = to_yaml(config)
    atomic_write(attempt / "config.yaml", text)
    if not paths.config_yaml.is_file():
        atomic_write(paths.config_yaml, text)
    return attempt / "config.yaml"


def record_launch(paths: RunPaths, kind: ClusterKind, **job: str) -> None:
    """Append a line to RUN/jobs.jsonl, which `status` and `stop` read.

    An earlier STOP is over, but for jobs: theirs is taken away before the first is submitted.

    Args:
        paths: of the run.
        kind: of the launch.
        job: for SLURM `job_id` and what it is for (`role`).

    Raises:
        StorageError: the run folder cannot be written.
    """
    line = {
        "time": time.time(),
        "kind": kind.value,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        **job,
    }
    with storage_errors(paths.jobs):
        paths.root.mkdir(parents=True, exist_ok=True)
        if not job:
            paths.stop.unlink(missing_ok=True)
        with open(paths.jobs, "a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")


def say(message: str) -> None:
    """One line on standard error."""
    with suppress(OSError):  # the terminal may be gone; the run matters more
        print(f"roberta-dist launch: {message}", file=sys.stderr, flush=True)
