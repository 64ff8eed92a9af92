from __future__ import annotations

import re
import time

import psutil
import pytest

from roberta_dist.runtime.laps import Laps

pytestmark = pytest.mark.unit


def test_the_first_lap_began_with_the_process():
    laps = Laps()
    laps.mark("before")
    time.sleep(0.2)
    laps.mark("sleep")
    match = re.fullmatch(r"before ([\d.]+) s, sleep (0\.\d) s", str(laps))
    assert match and 0.2 <= float(match[2]) < 1
    age = time.time() - psutil.Process().create_time() - 0.2
    assert abs(float(match[1]) - age) < 0.3
