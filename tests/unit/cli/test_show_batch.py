"""`tools/show_batch.py` refuses what no run has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit
TOOL = Path(__file__).resolve().parents[3] / "tools" / "show_batch.py"


@pytest.mark.parametrize("option", [("--step", "-1"), ("--rows", "0")])
def test_steps_and_rows_that_are_none_are_refused(option):
    command = [sys.executable, str(TOOL), *option, "data.path=nowhere"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert told.returncode == 2
    assert "--step must be ≥ 0 and --rows ≥ 1" in told.stderr
