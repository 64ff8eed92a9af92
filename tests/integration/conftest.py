"""What several files of runs share: a small corpus, and a run on it that nothing disturbed."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_support import finish, prepare_corpus, write_config


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 2 MiB of documentation."""
    return prepare_corpus(tmp_path_factory.mktemp("corpus") / "small")


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """Two ranks, ZeRO-1, never disturbed; dropout on; steps 3 and 4 traced."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    traced = ["train.profile=[3,5]", "train.profile_memory=true"]
    finish(write_config(run_dir, corpus, "checkpoint.keep_last=9", *traced), 2)
    return run_dir
