"""What this machine offers a launch, found without torch."""

from __future__ import annotations

import os
import random
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

from roberta_dist.errors import ConfigError, LaunchError

PORTS = range(20_000, 30_000)
"""Below Linux's ephemeral range, so that no outgoing connection takes a port before we do."""


def find_devices(environ: Mapping[str, str], dev: Path = Path("/dev")) -> list[int]:
    """Indices of the NVIDIA GPUs that this process may use; others are left to DeepSpeed.

    Raises:
        ConfigError: CUDA_VISIBLE_DEVICES names GPUs by UUID, which DeepSpeed's launcher cannot.
    """
    if environ.get("DS_ACCELERATOR", "cuda") != "cuda":
        return []
    present = [path for path in dev.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if not present or visible is None:
        return list(range(len(present)))
    try:
        return [int(index) for index in visible.split(",") if index.strip()]
    except ValueError as error:
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES={visible}: DeepSpeed's launcher knows GPUs by index only",
            "give indices, as `nvidia-smi -L` counts them",
        ) from error


def query_gpus() -> list[float] | None:
    """Used fraction of each NVIDIA GPU's memory, as `nvidia-smi` says; None where it does not exist.

    A GPU that fell off the bus is not among them, though its device file is still there.
    """
    query = ["nvidia-smi", "--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired:
        return []  # a driver that hangs offers no GPU
    return gpu_use(done.stdout)


def gpu_use(told: str) -> list[float]:
    """Used fractions from lines `USED, TOTAL`; lines about a GPU that does not answer are left out."""
    found = re.findall(r"^\s*(\d+)\s*,\s*(\d+)\s*$", told, re.MULTILINE)
    return [int(used) / int(total) for used, total in found if int(total)]


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_port() -> int:
    """A TCP port nobody listens on at this moment."""
    for port in random.sample(PORTS, 200):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
                return port
            except OSError:
                continue
    raise LaunchError(f"no free TCP port in {PORTS}", "give cluster.master_port=PORT")


def interface_towards(address: str) -> str | None:
    """Name of the network interface through which this machine reaches `address`; None if unknown."""
    try:
        family, _, _, _, target = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.split("%")[0] == own for entry in addresses):
            return str(name)
    return "lo" if own.startswith("127.") else None  # the whole of 127/8 is this machine


def check_numactl() -> None:
    """Refuse `cluster.bind_cores` where it cannot be.

    Raises:
        ConfigError: numactl is not installed.
    """
    if shutil.which("numactl") is None:
        raise ConfigError(
            "cluster.bind_cores=true: numactl is not installed on this machine",
            "install the package numactl, or leave cluster.bind_cores=false",
        )


def worker_script() -> Path:
    """`launch/pretrain.py`, the worker as a file."""
    return template_file("pretrain.py")


def template_file(name: str) -> Path:
    """`launch/NAME` of the checkout, or the one a wheel installed."""
    checkout = Path(__file__).resolve().parents[2] / "launch" / name
    installed = Path(sys.prefix) / "share" / "roberta_dist" / "launch" / name
    for file in (checkout, installed):
        if file.is_file():
            return file
    raise LaunchError(f"neither {checkout} nor {installed} exists", "reinstall roberta_dist")


def extensions_folder(environ: Mapping[str, str]) -> Path | None:
    """Where this environment keeps extensions that torch builds; None leaves it to torch.

    `launch/setup.sh` installs DeepSpeed's CPU operator ready-made. Elsewhere DeepSpeed builds it in
    the first run, here rather than in a home folder that several environments share.
    """
    if "TORCH_EXTENSIONS_DIR" in environ:
        return Path(environ["TORCH_EXTENSIONS_DIR"])
    return Path(sys.prefix) / "torch_extensions" if os.access(sys.prefix, os.W_OK) else None


def clear_stale_locks(extensions: Path) -> list[Path]:
    """Remove lock files that no process holds open, and return them.

    torch's builder creates `NAME/lock` and keeps it open while it builds or loads; a process
    killed meanwhile leaves the file, and every later one would wait for it for ever.
    """
    locks = [lock for lock in extensions.glob("*/lock") if not _is_open(lock)]
    for lock in locks:
        lock.unlink(missing_ok=True)
    return locks


def _is_open(path: Path) -> bool:
    target = str(path.resolve())
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(descriptor) == target:
                return True
        except OSError:
            continue  # closed meanwhile, or another user's
    return False
