"""What a run ran on: versions, hardware, kernels. Written once an attempt, sent nowhere."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from roberta_dist import __version__
from roberta_dist.model.kernels import available_kernels
from roberta_dist.runtime.versions import installed_version
from roberta_dist.runtime.world import World

PACKAGES = ("torch", "deepspeed", "webdataset", "hydra-core", "wandb", "transformers", "numpy")


def package_versions() -> dict[str, str]:
    """Installed version of each package a result may depend on."""
    own = {"roberta_dist": __version__, "python": platform.python_version()}
    return own | {name: installed_version(name) or "not installed" for name in PACKAGES}


def _git_commit() -> str:
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return "not a checkout"
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def describe_environment(world: World, device: torch.device) -> dict[str, Any]:
    """Contents of RUN/environment.json."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "versions": package_versions(),
        "git_commit": _git_commit(),
        "platform": platform.platform(),
        "device": f"{device.type} {name}".strip(),
        "cores": os.cpu_count(),
        "threads_per_worker": torch.get_num_threads(),
        "world_size": world.world_size,
        "kernels": available_kernels(),
    }
