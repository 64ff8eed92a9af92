"""What a process holds, and what it can still get."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from roberta_dist.errors import ConfigError
from roberta_dist.runtime import memory
from roberta_dist.units import MIB

pytestmark = pytest.mark.unit
CPU = torch.device("cpu")


PEAKS = """
import torch
from roberta_dist.runtime import memory
from roberta_dist.train.speed import memory_mib
from roberta_dist.units import MIB

CPU = torch.device("cpu")
block = torch.ones(40 * MIB // 4)
memory.reset_peak(CPU)
held = memory.held_bytes(CPU)
assert abs(memory.peak_bytes(CPU) - held) < 4 * MIB
another = torch.ones(20 * MIB // 4)
del another, block
assert 18 * MIB < memory.peak_bytes(CPU) - held < 24 * MIB
assert memory_mib(CPU) * MIB == memory.peak_bytes(CPU)
memory.reset_peak(CPU)
assert memory.peak_bytes(CPU) < held - 30 * MIB
"""


def test_a_peak_is_forgotten_and_measured_anew():
    """In a process of its own: this one has freed memory that is taken again without a trace."""
    ballast = torch.ones(1024 * MIB // 4)  # what a process that starts another holds is not its own
    done = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    del ballast


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 8000 MiB available whose process lies in the group a/b; returns a writer."""

    def write(path, text):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    write("proc/meminfo", f"MemTotal: {16_000 * 1024} kB\nMemAvailable:   {8000 * 1024} kB\n")
    write("proc/self/status", f"Name:\tx\nVmHWM:\t{70 * 1024} kB\nVmRSS:\t{50 * 1024} kB\n")
    write("proc/self/cgroup", "0::/a/b\n")
    return write


def test_without_a_limit_it_is_the_machine(machine):
    machine("cgroup/a/b/memory.max", "max\n")
    machine("cgroup/a/b/memory.current", "1\n")
    machine("cgroup/a/b/memory.stat", "inactive_file 0\n")
    assert memory.available_bytes() == 8000 * MIB
    assert memory.total_bytes(CPU) == 16_000 * MIB
    assert memory.attainable_bytes(CPU, ranks_here=4) == 2050 * MIB


@pytest.mark.parametrize("folder", ["cgroup/a/b", "cgroup/a", "cgroup"])
def test_the_nearest_limit_counts_at_whatever_height(machine, folder):
    machine(f"{folder}/memory.max", str(1000 * MIB))
    machine(f"{folder}/memory.current", str(700 * MIB))
    machine(f"{folder}/memory.stat", f"active_file 9\ninactive_file {100 * MIB}\n")
    assert memory.available_bytes() == 400 * MIB
    assert memory.total_bytes(CPU) == 1000 * MIB


def test_control_groups_of_version_1(machine):
    machine("proc/self/cgroup", "9:name=systemd:/\n4:memory:/job\n3:cpuset:/\n")
    machine("cgroup/memory/job/memory.limit_in_bytes", str(600 * MIB))
    machine("cgroup/memory/job/memory.usage_in_bytes", str(200 * MIB))
    machine("cgroup/memory/job/memory.stat", f"inactive_file 7\ntotal_inactive_file {50 * MIB}\n")
    machine("cgroup/memory/memory.limit_in_bytes", "9223372036854771712")
    machine("cgroup/memory/memory.usage_in_bytes", str(900 * MIB))
    machine("cgroup/memory/memory.stat", "total_inactive_file 0\n")
    assert memory.available_bytes() == 450 * MIB


def test_where_nothing_can_be_measured_a_number_is_asked_for(machine, tmp_path):
    (tmp_path / "proc/self/clear_refs").mkdir()
    with pytest.raises(ConfigError, match=r"cannot be measured") as refused:
        memory.reset_peak(CPU)
    assert "a number" in refused.value.remedy
