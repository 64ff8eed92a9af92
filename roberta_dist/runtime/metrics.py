"""Reading metrics.jsonl, also that of a run that still goes on: its last line may be half-written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from roberta_dist.errors import DataFault
from roberta_dist.runtime.tail import lines_backwards

DAMAGE = (ValueError, KeyError, TypeError)


def parse_row(line: bytes | str) -> dict[str, Any]:
    """One line. Raises one of `DAMAGE` where it is none."""
    row = json.loads(line)
    return {**row, "step": int(row["step"])}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All lines, in their order.

    Raises:
        DataFault: a line other than the last is damaged.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(parse_row(line))
        except DAMAGE as error:
            if number == len(lines):
                break
            raise DataFault(
                f"{path}: line {number} is damaged ({error})",
                "remove that line; only the picture needs it",
            ) from error
    return rows


def rows_backwards(path: Path, mark: str = "") -> Iterator[dict[str, Any]]:
    """Lines from the last to the first, those alone that contain `mark`; damaged ones are left out.

    For a look at how a run does: it reads no more of a long file than is asked for, and a file that
    is not there yet has no lines.
    """
    if not path.is_file():
        return
    wanted = mark.encode()
    for line in lines_backwards(path):
        if wanted in line:
            try:
                row = parse_row(line)
            except DAMAGE:
                continue
            yield row
