"""A world that did its work ends with exit code 0, whatever gloo's threads still hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import world_support as support

pytestmark = pytest.mark.world
WORKER = Path(__file__).with_name("leave_worker.py")


@pytest.mark.parametrize(("ending", "code"), [("end_process", 0), ("sys.exit", -6)])
def test_a_late_gloo_thread_does_not_abort_the_process(tmp_path, ending, code):
    """The second case is the control: should it end with 0 one day, `end_process` can go."""
    arguments = [str(tmp_path / "flag"), ending]
    codes, logs = support.run_ranks(WORKER, 2, arguments, tmp_path / "log", 90)
    assert codes[0] == code, logs
    assert "rank 0 is done" in logs
