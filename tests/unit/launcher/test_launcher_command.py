from __future__ import annotations

from pathlib import Path

import pytest

from roberta_dist.errors import ConfigError
from roberta_dist.launcher.command import deepspeed_command, worker_count, worker_environment

pytestmark = pytest.mark.unit
SCRIPT, CONFIG = Path("/src/launch/pretrain.py"), Path("/runs/a b/logs/attempt_000/config.yaml")


def test_command_without_accelerator():
    assert deepspeed_command("/env/bin/python", [], 2, 21000, SCRIPT, CONFIG) == [
        "/env/bin/python", "-m", "deepspeed.launcher.runner", "--quiet",
        "--hostfile=/runs/a b/logs/attempt_000/no_hostfile", "--num_gpus=2",
        "--master_addr=127.0.0.1", "--master_port=21000", "--no_local_rank",
        "/src/launch/pretrain.py", "/runs/a b/logs/attempt_000/config.yaml",
    ]  # fmt: skip


def test_command_keeps_the_devices_that_are_ours():
    command = deepspeed_command("python", [2, 5, 7], 2, 1, SCRIPT, CONFIG)
    assert "--include=localhost:2,5" in command
    assert not any(word.startswith("--num_gpus") for word in command)


def test_environment():
    environ = {"PATH": "/bin", "RANK": "3", "LOCAL_SIZE": "8", "MASTER_PORT": "1", "HOME": "/h"}
    made = worker_environment(
        environ, "/env/bin/python", "attempt_004", 77, 6, Path("/env/torch_extensions"), True
    )
    assert made == {
        "PATH": "/env/bin:/bin",
        "HOME": "/h",
        "OMP_NUM_THREADS": "6",
        "PYTHONFAULTHANDLER": "1",
        "ROBERTA_DIST_ATTEMPT": "attempt_004",
        "ROBERTA_DIST_LAUNCHER_PID": "77",
        "TORCH_EXTENSIONS_DIR": "/env/torch_extensions",
        "DS_ACCELERATOR": "cpu",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    assert environ["RANK"] == "3"


def test_environment_leaves_the_users_choices():
    made = worker_environment(
        {"DS_ACCELERATOR": "xpu", "GLOO_SOCKET_IFNAME": "eth1"}, "/p", "a", 1, 1, None, True
    )
    assert (made["DS_ACCELERATOR"], made["GLOO_SOCKET_IFNAME"]) == ("xpu", "eth1")
    assert "TORCH_EXTENSIONS_DIR" not in made
    assert "DS_ACCELERATOR" not in worker_environment({}, "/p", "a", 1, 1, None, False)


@pytest.mark.parametrize(
    ("asked", "devices", "expected"), [(0, [], 1), (3, [], 3), (0, [0, 1], 2), (1, [0, 1], 1)]
)
def test_worker_count(asked, devices, expected):
    assert worker_count(asked, devices) == expected


def test_more_workers_than_accelerators():
    with pytest.raises(ConfigError, match="workers_per_node=2: this machine shows 1 accelerator"):
        worker_count(2, [0])
