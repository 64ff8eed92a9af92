"""Parts: contiguous ranges of a source's units, what the reading phase is dealt out by.

A function of the source alone, so that documents, places and files on disk never depend on who
reads: not on tasks, not on workers.
"""

from __future__ import annotations

from collections.abc import Sequence

from roberta_dist.corpus.sources import Unit
from roberta_dist.units import KIB, MIB

PART_BYTES = 128 * MIB
MAX_PARTS = 4096
"""A larger source gets larger parts: every bucket gathers from every part."""
SMALL_PART_BYTES = 256 * KIB
SMALL_SOURCE_PARTS = 8


def plan_parts(units: Sequence[Unit]) -> tuple[tuple[Unit, ...], ...]:
    """Units dealt to parts of about 128 MiB, in order; none is empty, a unit is never divided.

    A small source is dealt to up to 8 parts of at least 256 KiB, so that several cores read it.
    """
    total = sum(unit.size for unit in units)
    wanted = -(-total // max(PART_BYTES, -(-total // MAX_PARTS)))
    count = max(1, wanted, min(SMALL_SOURCE_PARTS, total // SMALL_PART_BYTES))
    parts: list[list[Unit]] = [[] for _ in range(count)]
    before = 0
    for unit in units:
        # By the middle of the unit: (before + size / 2) / total, in integers.
        place = (2 * before + unit.size) * count // (2 * total) if total else 0
        parts[min(place, count - 1)].append(unit)
        before += unit.size
    return tuple(tuple(part) for part in parts if part)


def part_name(number: int) -> str:
    """`part-00003`."""
    return f"part-{number:05d}"
