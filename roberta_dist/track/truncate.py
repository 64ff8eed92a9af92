"""Cutting metrics.jsonl back to where a resumed run starts; nothing is thrown away."""

from __future__ import annotations

import json
from pathlib import Path

from roberta_dist.runtime.files import atomic_write


def _belongs(line: bytes, after_step: int, evaluated: bool) -> bool:
    try:
        row = json.loads(line)
        if row["step"] == after_step and "eval_loss" in row:
            return evaluated
        return bool(row["step"] <= after_step)
    except (ValueError, KeyError, TypeError):
        return False  # half-written: a kill cut it


def truncate_metrics(path: Path, after_step: int, removed_to: Path, evaluated: bool) -> int:
    """Keep the lines with step ≤ `after_step`; move the others to the end of `removed_to`.

    Args:
        path: metrics.jsonl.
        after_step: from which the run goes on.
        removed_to: file that gets the other lines.
        evaluated: an evaluation at `after_step` is done; else it will come again, and its line goes.

    What is kept ends with a newline, so that the next line does not join the last one.

    Returns:
        Lines removed; 0 when there is no file.
    """
    if not path.is_file():
        return 0
    content = path.read_bytes()
    kept: list[bytes] = []
    removed: list[bytes] = []
    for line in content.split(b"\n"):
        if line:
            (kept if _belongs(line, after_step, evaluated) else removed).append(line + b"\n")
    if removed:
        earlier = removed_to.read_bytes() if removed_to.is_file() else b""
        atomic_write(removed_to, earlier + b"".join(removed))
    if b"".join(kept) != content:
        atomic_write(path, b"".join(kept))
    return len(removed)
