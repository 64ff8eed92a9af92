"""`doctor`: what this machine has, and what a run here would use. Changes nothing, sends nothing."""

from __future__ import annotations

import netrc
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from roberta_dist import __version__
from roberta_dist.config.roots import DoctorConfig
from roberta_dist.config.watch import TrackConfig
from roberta_dist.runtime.versions import installed_version
from roberta_dist.units import human_bytes

PACKAGES = (
    "torch", "deepspeed", "webdataset", "wandb", "hydra-core", "transformers", "tokenizers",
    "tiktoken", "safetensors", "numpy",
)  # fmt: skip
WANDB_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
"""Where `wandb login` keeps its key for: the second since W&B's service moved (wandb 0.31)."""
CPU_OPERATOR = "deepspeed_shm_comm"
Fact = tuple[str, str]


def doctor(config: DoctorConfig) -> int:
    """Print one line a fact, `name  what`; a line with PROBLEM says what would not work.

    Returns:
        0, also with problems: they are for the reader to judge.
    """
    for name, what in collect(config):
        print(f"{name:<18}{what}")
    return 0


def collect(config: DoctorConfig) -> list[Fact]:
    """(name, what) of each fact, in the order they are printed."""
    return [
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("roberta_dist", __version__),
        *((name, needed_version(name)) for name in PACKAGES),
        *_or_problem("accelerator", _hardware),
        *_or_problem("kernels", _kernels),
        ("compiler", _found("c++", "g++")),
        ("ninja", _found("ninja")),
        ("free disk", free_disk(Path(config.path))),
        (
            "W&B",
            f"mode {TrackConfig().wandb.value} unless track.wandb says otherwise; {wandb_key()}",
        ),
    ]


def needed_version(distribution: str) -> str:
    """Version, or PROBLEM where it is missing: all of these are needed."""
    return installed_version(distribution) or "PROBLEM: not installed; run launch/setup.sh"


def _or_problem(name: str, look: Callable[[], list[Fact]]) -> list[Fact]:
    """A broken installation is what people call a doctor for."""
    try:
        return look()
    except (ImportError, OSError, RuntimeError) as error:
        return [(name, f"PROBLEM: {error}")]


def _hardware() -> list[Fact]:
    import torch
    from deepspeed.accelerator import get_accelerator

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = get_accelerator().device_name()
    if name == "cpu":
        return [
            ("accelerator", f"none; {cores} cores"),
            ("DeepSpeed CPU op", _cpu_operator()),
            ("DeepSpeed CPUAdam", _cpu_adam()),
        ]
    devices = [
        f"{get_accelerator().get_device_name(i)} ({human_bytes(get_accelerator().total_memory(i))})"
        for i in range(get_accelerator().device_count())
    ]
    bf16 = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no bf16"
    return [("accelerator", f"{name}: {', '.join(devices)}; {bf16}; {cores} cores")]


def _cpu_operator() -> str:
    from deepspeed.git_version_info import accelerator_name, installed_ops

    if accelerator_name == "cpu" and installed_ops.get(CPU_OPERATOR, False):
        return f"{CPU_OPERATOR} installed"
    return f"{CPU_OPERATOR} not installed: the first run builds it (about a minute); see launch/setup.sh"


def _cpu_adam() -> str:
    from roberta_dist.optim.backends import has_cpu_adam

    if has_cpu_adam():
        return "installed (optim.backend=deepspeed)"
    return "not installed: the first use of optim.backend=deepspeed builds it (minutes)"


def _kernels() -> list[Fact]:
    import torch

    from roberta_dist.config.model import KernelsConfig, ModelConfig
    from roberta_dist.model.kernels import available_kernels, describe_choice

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    used = describe_choice(KernelsConfig(), ModelConfig(), device)
    return [("kernels", f"{used} (auto, at base size)"), *available_kernels().items()]


def _found(*programs: str) -> str:
    for program in programs:
        path = shutil.which(program)
        if path:
            return path
    return f"not found on PATH ({' or '.join(programs)}): only needed to build extensions"


def free_disk(folder: Path) -> str:
    """Free space on the disk that holds `folder`, which need not exist yet."""
    nearest = next(f for f in (folder.absolute(), *folder.absolute().parents) if f.exists())
    usage = shutil.disk_usage(nearest)
    writable = "" if os.access(nearest, os.W_OK) else "; PROBLEM: not writable by this user"
    return f"{human_bytes(usage.free)} of {human_bytes(usage.total)} at {nearest}{writable}"


def wandb_key() -> str:
    """Whether a W&B key is found; never the key."""
    if os.environ.get("WANDB_API_KEY"):
        return "a key is in WANDB_API_KEY"
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    own = urlsplit(os.environ.get("WANDB_BASE_URL", "")).hostname
    try:
        known = netrc.netrc(str(path)).hosts
        if known.keys() & {*WANDB_HOSTS, own}:
            return f"a key is in {path}"
    except (OSError, netrc.NetrcParseError):
        pass
    return "no key found"
