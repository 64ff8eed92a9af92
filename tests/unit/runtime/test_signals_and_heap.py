from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from roberta_dist.runtime.signals import HANDLED, StopRequest

pytestmark = pytest.mark.unit


@pytest.fixture
def handlers():
    before = {signum: signal.getsignal(signum) for signum in HANDLED}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize("signum", HANDLED)
def test_first_signal_asks_and_a_second_term_says_nothing_new(handlers, signum):
    stop = StopRequest()
    stop.install()
    assert not stop.requested
    signal.raise_signal(signum)
    assert stop.requested
    signal.raise_signal(signal.SIGTERM)  # SLURM sends it twice for one scancel
    assert stop.requested


def test_a_second_interrupt_ends_the_process():
    code = (
        "import signal; from roberta_dist.runtime.signals import StopRequest; "
        "s = StopRequest(); s.install(); signal.raise_signal(signal.SIGTERM); "
        "print('asked', flush=True); signal.raise_signal(signal.SIGINT); print('still here')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "asked\n" and done.returncode == -signal.SIGINT


HEAP = """
import numpy as np
from roberta_dist.runtime.heap import HeapTrimmer, _resident_bytes
trimmer = HeapTrimmer(enabled=ENABLED)
trimmer.check()
kept = []
for _ in range(3):  # blocks below the mmap threshold, each followed by a small one that stays
    large = []
    for _ in range(1500):
        large.append(np.ones(12_000))
        kept.append(np.ones(100))
    del large
full = _resident_bytes()
trimmer.check()
print((full - _resident_bytes()) // 2**20)
"""


@pytest.mark.parametrize("enabled", [True, False])
def test_free_pages_between_kept_ones_are_returned(enabled):
    code = HEAP.replace("ENABLED", str(enabled))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    returned_mib = int(done.stdout)
    assert returned_mib > 100 if enabled else returned_mib == 0
