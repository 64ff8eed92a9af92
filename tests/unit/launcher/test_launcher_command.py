from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from roberta_dist.errors import ConfigError
from roberta_dist.launcher.command import node_command, worker_count, worker_environment

pytestmark = pytest.mark.unit
SCRIPT, CONFIG = Path("/src/launch/pretrain.py"), Path("/runs/a b/logs/attempt_000/config.yaml")


def test_command_of_one_machine():
    command = node_command(
        "/env/bin/python", {"localhost": [0, 1]}, 0, "127.0.0.1", 21000, False, SCRIPT, CONFIG
    )
    assert command == [
        "/env/bin/python", "-u", "-m", "deepspeed.launcher.launch", "--quiet",
        "--world_info=eyJsb2NhbGhvc3QiOiBbMCwgMV19", "--node_rank=0", "--master_addr=127.0.0.1",
        "--master_port=21000", "--no_local_rank", "/src/launch/pretrain.py",
        "/runs/a b/logs/attempt_000/config.yaml",
    ]  # fmt: skip


def test_command_of_one_machine_of_several():
    nodes = {"node1": [0, 1], "node2": [2, 5]}
    command = node_command("python", nodes, 1, "node1", 1, True, SCRIPT, CONFIG)
    assert "--node_rank=1" in command and "--bind_cores_to_rank" in command
    (world,) = (word.partition("=")[2] for word in command if word.startswith("--world_info="))
    assert json.loads(base64.urlsafe_b64decode(world)) == nodes


def test_environment():
    environ = {"PATH": "/bin", "RANK": "3", "LOCAL_SIZE": "8", "MASTER_PORT": "1", "HOME": "/h"}
    made = worker_environment(
        environ, "/env/bin/python", "attempt_004", 77, 6, Path("/env/torch_extensions"), True,
        None, "lo",
    )  # fmt: skip
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
        {"DS_ACCELERATOR": "xpu", "GLOO_SOCKET_IFNAME": "eth1"}, "/p", "a", 1, 1, None, True,
        None, "lo",
    )  # fmt: skip
    assert (made["DS_ACCELERATOR"], made["GLOO_SOCKET_IFNAME"]) == ("xpu", "eth1")
    assert "TORCH_EXTENSIONS_DIR" not in made
    assert "DS_ACCELERATOR" not in worker_environment({}, "/p", "a", 1, 1, None, False, None, None)


def test_an_interface_that_was_asked_for_stands_above_all():
    environ = {"GLOO_SOCKET_IFNAME": "eth1", "NCCL_SOCKET_IFNAME": "eth1"}
    made = worker_environment(environ, "/p", "a", 1, 1, None, True, "ib0", "lo")
    assert (made["GLOO_SOCKET_IFNAME"], made["NCCL_SOCKET_IFNAME"]) == ("ib0", "ib0")


@pytest.mark.parametrize(
    ("asked", "devices", "expected"), [(0, [], 1), (3, [], 3), (0, [0, 1], 2), (1, [0, 1], 1)]
)
def test_worker_count(asked, devices, expected):
    assert worker_count(asked, devices) == expected


def test_more_workers_than_accelerators():
    with pytest.raises(ConfigError, match="workers_per_node=2: this machine shows 1 accelerator"):
        worker_count(2, [0])
