from __future__ import annotations

import socket

import pytest

from roberta_dist.errors import ConfigError
from roberta_dist.launcher.machine import (
    PORTS,
    check_numactl,
    clear_stale_locks,
    extensions_folder,
    find_devices,
    free_port,
    interface_towards,
    worker_script,
)

pytestmark = pytest.mark.unit


@pytest.fixture
def four_gpus(tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidia3", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, [0, 1, 2, 3]),
        ({"CUDA_VISIBLE_DEVICES": "2,1"}, [2, 1]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"DS_ACCELERATOR": "cpu"}, []),
    ],
)
def test_devices(four_gpus, environ, expected):
    assert find_devices(environ, four_gpus) == expected


def test_no_device(tmp_path):
    assert find_devices({"CUDA_VISIBLE_DEVICES": "0"}, tmp_path) == []


def test_uuids_are_refused(four_gpus):
    with pytest.raises(ConfigError, match="GPU-1234"):
        find_devices({"CUDA_VISIBLE_DEVICES": "GPU-1234"}, four_gpus)


def test_free_port_can_be_bound():
    port = free_port()
    assert port in PORTS
    with socket.socket() as listener:
        listener.bind(("", port))


def test_worker_script_is_the_checkouts():
    assert worker_script().name == "pretrain.py"


def test_the_users_extension_folder_wins(tmp_path):
    assert extensions_folder({"TORCH_EXTENSIONS_DIR": str(tmp_path)}) == tmp_path


def test_only_locks_that_nobody_holds_are_removed(tmp_path):
    for name in ("held", "stale"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lock").touch()
    with open(tmp_path / "held" / "lock"):
        assert clear_stale_locks(tmp_path) == [tmp_path / "stale" / "lock"]
    assert (tmp_path / "held" / "lock").exists()
    assert not (tmp_path / "stale" / "lock").exists()


def test_the_interface_towards_an_address():
    assert interface_towards("127.0.0.1") == "lo"
    assert interface_towards("127.0.1.2") == "lo"  # no interface has it, and it is this machine
    assert interface_towards("no.such.host.invalid") is None


def test_binding_without_numactl_names_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"cluster\.bind_cores=true.*\n.*install .*numactl"):
        check_numactl()
    (tmp_path / "numactl").touch(mode=0o755)
    check_numactl()
