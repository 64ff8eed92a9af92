"""Memory of this process, and what the machine has left: what a search for a batch size measures.

On a CPU the peak is the kernel's own (`VmHWM` of proc(5)), which writing 5 to `/proc/self/clear_refs`
sets back to what is resident now. On an accelerator it is what torch has reserved: blocks that are
cached or fragmented are taken as much as those in use.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from roberta_dist.errors import ConfigError
from roberta_dist.units import KIB

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
CGROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Limit, use and the reclaimable part of it (a line of memory.stat): version 2, version 1."""


def reset_peak(device: torch.device) -> None:
    """Forget the peak so far: `peak_bytes` counts from what is held now.

    Raises:
        ConfigError: this system does not say how much memory a process took.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        (PROC / "self/clear_refs").write_text("5")
    except OSError as error:
        raise ConfigError(
            f"train.micro_batch_size=auto: peak memory cannot be measured here ({error})",
            "give train.micro_batch_size a number",
        ) from error


def peak_bytes(device: torch.device) -> int:
    """Most memory this process held since `reset_peak`, bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return _kib_of("self/status", "VmHWM") * KIB


def held_bytes(device: torch.device) -> int:
    """Memory this process holds now, bytes."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return _kib_of("self/status", "VmRSS") * KIB


def attainable_bytes(device: torch.device, ranks_here: int) -> int:
    """What this rank may come to hold, bytes: what it has and its share of what is free.

    Args:
        device: this rank's.
        ranks_here: ranks that share this machine's memory; each has an accelerator of its own.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return held_bytes(device) + free
    return held_bytes(device) + available_bytes() // ranks_here


def total_bytes(device: torch.device) -> int:
    """Memory of the device, whoever holds it, bytes."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = [limit for limit, _ in _cgroup_limits()]
    return min([_kib_of("meminfo", "MemTotal") * KIB, *limits])


def available_bytes() -> int:
    """Main memory that can still be taken: the machine's, or less where a control group ends sooner."""
    return min([_kib_of("meminfo", "MemAvailable") * KIB, *(left for _, left in _cgroup_limits())])


def _kib_of(file: str, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", (PROC / file).read_text(), re.MULTILINE)
    if found is None:
        raise ConfigError(
            f"train.micro_batch_size=auto: /proc/{file} has no {field}",
            "give train.micro_batch_size a number",
        )
    return int(found[1])


def _cgroup_limits() -> Iterator[tuple[int, int]]:
    """(limit, bytes left) of this process's memory control groups and those above them."""
    for line in (PROC / "self/cgroup").read_text().splitlines():
        _, controllers, inside = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = CGROUPS / controllers
        # In a container the path may be the host's, of which only the top is seen.
        for folder in {top, *(top / path for path in _and_above(inside.strip("/")))}:
            for limit_file, use_file, reclaimable in CGROUP_FILES:
                try:
                    limit = (folder / limit_file).read_text().strip()
                    use = int((folder / use_file).read_text())
                    stat = (folder / "memory.stat").read_text()
                except OSError:
                    continue
                if limit == "max":
                    continue
                cached = re.search(rf"^{reclaimable} (\d+)$", stat, re.MULTILINE)
                yield int(limit), max(0, int(limit) - use + (int(cached[1]) if cached else 0))


def _and_above(path: str) -> list[str]:
    parts = [part for part in path.split(os.sep) if part]
    return [os.sep.join(parts[:depth]) for depth in range(1, len(parts) + 1)]
