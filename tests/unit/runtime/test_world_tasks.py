from __future__ import annotations

import pytest

from roberta_dist.errors import ConfigError
from roberta_dist.runtime.world import adopt_tasks, detect_world

pytestmark = pytest.mark.unit
TASK = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "7", "SLURM_LOCALID": "1",
        "SLURM_NODEID": "2", "SLURM_STEP_TASKS_PER_NODE": "2(x3),1"}  # fmt: skip


def test_a_task_of_our_script_is_a_rank():
    environ = TASK | {"ROBERTA_DIST_TRANSPORT": "srun", "RANK": "0"}
    adopt_tasks(environ)
    world = detect_world(environ)
    assert (world.rank, world.world_size, world.local_rank) == (5, 7, 1)
    assert environ["LOCAL_SIZE"] == "2"
    last = environ | {"SLURM_NODEID": "3"}
    adopt_tasks(last)
    assert last["LOCAL_SIZE"] == "1"


def test_a_shell_inside_an_allocation_is_none():
    environ = dict(TASK)
    adopt_tasks(environ)
    assert environ == TASK


@pytest.mark.parametrize(
    "change", [{"SLURM_PROCID": None}, {"SLURM_NODEID": "9"}, {"SLURM_STEP_TASKS_PER_NODE": "x"}]
)
def test_half_a_task_is_an_error(change):
    environ = {k: v for k, v in (TASK | change).items() if v is not None}
    with pytest.raises(ConfigError, match="start workers by srun"):
        adopt_tasks(environ | {"ROBERTA_DIST_TRANSPORT": "srun"})
