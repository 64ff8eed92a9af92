"""What every acceptance list does: a line and a figure a point, exit code 1 if one fails."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def say(number: str, ok: bool, figure: str) -> bool:
    """Print the line of one figure; returns `ok`."""
    print(f"[{'ok' if ok else 'FAILED'}] {number}: {figure}", flush=True)
    return ok


def pytest_passes(*arguments: str) -> tuple[bool, str]:
    """Whether the tests pass, and pytest's last line."""
    command = [sys.executable, "-m", "pytest", "-q", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode == 0, (done.stdout.strip().splitlines() or [done.stderr])[-1]


def run_points(points: Mapping[str, Callable[[], bool]], work: Path) -> int:
    """Run the points named on the command line, or all; `work` is kept when one fails."""
    chosen = sys.argv[1:] or list(points)
    results = {number: points[number]() for number in chosen}
    failed = [number for number, passed in results.items() if not passed]
    print(f"{len(results) - len(failed)} passed, {len(failed)} failed {failed or ''}".strip())
    if not failed:
        shutil.rmtree(work)
    return int(bool(failed))
