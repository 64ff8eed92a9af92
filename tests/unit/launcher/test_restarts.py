"""How often a broken world is started again, and after how long."""

from __future__ import annotations

import pytest

from roberta_dist.config.cluster import ClusterConfig
from roberta_dist.launcher.restarts import Restarts
from roberta_dist.runtime.rundir import RunPaths, complete_steps

pytestmark = pytest.mark.unit


def test_only_restarts_without_progress_count():
    restarts = Restarts(ClusterConfig(restarts=2, restart_delay_s=5))
    assert [restarts.delay(progress=False) for _ in range(3)] == [5, 10, None]
    restarts = Restarts(ClusterConfig(restarts=2, restart_delay_s=5))
    assert [restarts.delay(progress) for progress in (False, True, False, False)] == [
        5,
        5,
        10,
        None,
    ]
    assert Restarts(ClusterConfig(restarts=0)).delay(progress=True) is None


def test_progress_is_a_whole_checkpoint(tmp_path):
    paths = RunPaths(tmp_path)
    assert complete_steps(paths.checkpoints) == []
    (paths.checkpoints / "step_00000010").mkdir(parents=True)
    assert complete_steps(paths.checkpoints) == []
    (paths.checkpoints / "step_00000010" / "COMPLETE").touch()
    assert complete_steps(paths.checkpoints) == [10]
