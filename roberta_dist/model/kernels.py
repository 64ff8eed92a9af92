"""Which fast kernels this machine has, and which one attention uses.

Torch's own attention is what runs; apex is only used for its optimizers (optim/backends.py). So
this file looks (without executing foreign code) and reports.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from roberta_dist.config.model import Attention, KernelsConfig
from roberta_dist.runtime.versions import installed_version


def has_nvidia_apex() -> bool:
    """Whether `apex` is installed and NVIDIA's, not the unrelated PyPI project of that name.

    NVIDIA's has `apex/optimizers` and `apex/normalization`; the other one (a web toolkit) has
    neither. `find_spec` of a top-level name locates the package without running it.
    """
    spec = importlib.util.find_spec("apex")
    folders = map(Path, (spec.submodule_search_locations or ()) if spec else ())
    return any((f / "optimizers").is_dir() and (f / "normalization").is_dir() for f in folders)


def describe_apex() -> str:
    """Whether `apex` is NVIDIA's, the unrelated PyPI project of that name, or absent."""
    if importlib.util.find_spec("apex") is None:
        return "absent"
    version = installed_version("apex") or "unknown version"
    if has_nvidia_apex():
        return f"NVIDIA apex {version} (its optimizers: optim.backend=apex)"
    return f"not NVIDIA's: the unrelated PyPI project `apex` {version} (ignored)"


def describe_flash_attn() -> str:
    """Whether the flash-attn package is installed."""
    if importlib.util.find_spec("flash_attn") is None:
        return "absent"
    return (
        f"{installed_version('flash-attn') or 'unknown version'} (found, not used by this version)"
    )


def describe_sdpa() -> str:
    """What torch's scaled-dot-product attention runs on here."""
    if torch.cuda.is_available():
        return f"torch {torch.__version__} on cuda: flash, memory-efficient or math, by shape"
    return f"torch {torch.__version__} on cpu: flash, or math where there is dropout"


def available_kernels() -> dict[str, str]:
    """What is installed, for `doctor` and `environment.json`: kernel → description."""
    return {
        "sdpa": describe_sdpa(),
        "apex": describe_apex(),
        "flash_attn": describe_flash_attn(),
    }


def resolve_attention(kernels: KernelsConfig) -> Attention:
    """The kernel that `kernels.attention` stands for on this machine."""
    if kernels.attention is Attention.auto:
        return Attention.sdpa
    return kernels.attention
