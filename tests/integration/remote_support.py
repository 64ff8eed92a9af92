"""Runs whose corpus lies on a server, held against the run from disk: for tests and acceptance."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import run_support
from serving import AWS_ENVIRONMENT, ServerProcess

STEPS = 20
SHORT = [
    f"schedule.max_steps={STEPS}", "evaluate.every_steps=10", "checkpoint.every_steps=20",
    "data.cache_mib=0.001",  # every row is read again: the server is asked in every step
]  # fmt: skip


@contextmanager
def surroundings(folder: Path, endpoint: str = "") -> Iterator[None]:
    """Environment of a run that reads from a server of this machine, with its cache in `folder`."""
    own = {"XDG_CACHE_HOME": str(folder / "cache")}
    if endpoint:
        own["AWS_ENDPOINT_URL"] = endpoint
    with patch.dict(os.environ, AWS_ENVIRONMENT | own):
        yield


def run_from_disk(run_dir: Path, corpus: Path) -> Path:
    """The run that the others must equal."""
    run_support.finish(run_support.write_config(run_dir, corpus, *SHORT), 1)
    return run_dir


def remote_config(run_dir: Path, data_path: str) -> Path:
    """RUN/config.yaml of the same run with another data.path."""
    return run_support.write_config(run_dir, run_dir, *SHORT, f'data.path="{data_path}"')


def run_from_server(kind: str, corpus: Path, folder: Path, kill: bool) -> Path:
    """A run from a server (`s3` or `http`); with `kill` it is killed after step 3 and restarted.

    Returns:
        The run folder, below `folder`.
    """
    run_dir = folder / "run"
    server = ServerProcess(kind, corpus, folder / "server.log")
    with server, surroundings(folder, server.endpoint):
        ranks = run_support.start(remote_config(run_dir, server.data_path), 1)
        try:
            if kill:
                run_support.wait_for_step(run_dir, ranks, 3)
                server.kill()
                time.sleep(0.5)
                server.start()
            codes = ranks.wait()
        finally:
            ranks.signal(9)
    assert codes == [0], ranks.output()[-4000:]
    assert ("next try in" in ranks.output()) == kill  # whether the server was missed
    return run_dir


def run_through_a_command(corpus: Path, folder: Path) -> Path:
    """A run whose shards are streamed by `cat`."""
    run_dir = folder / "run"
    with surroundings(folder):
        run_support.finish(remote_config(run_dir, f"pipe:cat {corpus}/{{}}"), 1)
    assert (folder / "cache" / "roberta_dist" / "content").is_dir()
    return run_dir


def same_metrics(run_dir: Path, expected: Path) -> bool:
    """All steps are there, and their deterministic columns are equal in every digit."""
    ours = run_support.deterministic(run_dir)
    steps = [line["step"] for line in ours if "loss" in line]
    return steps == list(range(1, STEPS + 1)) and ours == run_support.deterministic(expected)
