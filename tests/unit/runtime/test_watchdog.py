"""A process without progress ends, says why, and shows where it stood."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.unit
PROGRAM = """
import sys, time
from pathlib import Path
from roberta_dist.runtime.watchdog import Watchdog

def where_it_hangs():
    time.sleep(60)

folder = Path(sys.argv[1])
dog = Watchdog(float(sys.argv[2]), folder / "stacks", lambda: (folder / "words").write_text("5"))
for _ in range(4):  # longer than the timeout in all
    dog.beat()
    time.sleep(0.3)
if sys.argv[3] == "hang":
    where_it_hangs()
dog.stop()
time.sleep(1.5)
"""


@pytest.mark.parametrize(("timeout", "hangs", "code"), [(1, True, 5), (1, False, 0), (0, False, 0)])
def test_it_ends_only_what_hangs(tmp_path, timeout, hangs, code):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(timeout), "hang" if hangs else ""]
    assert subprocess.run(command, timeout=30, stderr=subprocess.DEVNULL).returncode == code
    assert (tmp_path / "words").exists() == hangs
    assert (tmp_path / "stacks").exists() == bool(timeout)
    if hangs:
        told = (tmp_path / "stacks").read_text()
        assert "no progress for" in told and "where_it_hangs" in told
