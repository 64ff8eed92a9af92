"""What the points of `launcher` share: a folder, and a small corpus in it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import run_support as runs

WORK = Path(tempfile.mkdtemp(prefix="launcher-"))


def corpus() -> Path:
    """A small corpus, made once."""
    folder = WORK / "corpus"
    return folder if folder.is_dir() else runs.prepare_corpus(folder)
