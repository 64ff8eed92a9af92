"""Cutting metrics.jsonl back to where a resumed run starts; nothing is thrown away."""

from __future__ import annotations

import json
from pathlib import Path

from roberta_dist.runtime.files import atomic_write


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # half-written: a kill cut it


def truncate_metrics(path: Path, after_step: int, removed_to: Path) -> int:
    """Keep the lines with step ≤ `after_step`; move the others to the end of `removed_to`.

    Returns:
        Lines removed; 0 when there is no file.
    """
    if not path.is_file():
        return 0
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line]
    kept = [line for line in lines if _step(line) <= after_step]
    removed = [line for line in lines if _step(line) > after_step]
    if removed:
        earlier = removed_to.read_text(encoding="utf-8") if removed_to.is_file() else ""
        atomic_write(removed_to, earlier + "".join(f"{line}\n" for line in removed))
        atomic_write(path, "".join(f"{line}\n" for line in kept))
    return len(removed)
