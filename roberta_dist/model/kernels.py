"""Which fast kernels this machine has, and which ones a model uses.

Of foreign packages only apex is used, for its optimizers (optim/backends.py): this file looks for them
(without executing foreign code) and reports.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from roberta_dist.config.model import (
    Attention,
    CrossEntropy,
    Fusion,
    KernelsConfig,
    ModelConfig,
)
from roberta_dist.errors import ConfigError
from roberta_dist.model.fused import Pieces, can_compile, compiled_pieces
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


def describe_fusion() -> str:
    """Whether torch.compile has what it needs."""
    if can_compile():
        return f"torch.compile to {'Triton' if torch.cuda.is_available() else 'C++'}"
    return "no C++ compiler (CXX, g++ or clang++): element-wise work is not fused"


def available_kernels() -> dict[str, str]:
    """What is installed, for `doctor` and `environment.json`: kernel → description."""
    return {
        "sdpa": describe_sdpa(),
        "fusion": describe_fusion(),
        "apex": describe_apex(),
        "flash_attn": describe_flash_attn(),
    }


def resolve_attention(kernels: KernelsConfig, device: torch.device, full: bool) -> Attention:
    """The kernel that `kernels.attention` stands for.

    Args:
        kernels: what is asked for.
        device: of the batch.
        full: all rows of the batch are of one length.

    Raises:
        ConfigError: a kernel that is only for CPUs on another device.
    """
    on_cpu = device.type == "cpu"
    if kernels.attention is Attention.auto:
        if device.type == "cuda" and not full:
            return Attention.varlen
        return Attention.blocked if on_cpu else Attention.sdpa
    if kernels.attention is Attention.blocked and device.type == "cuda":
        raise ConfigError(
            "kernels.attention=blocked: it is for CPUs; this is a cuda device",
            "use kernels.attention=auto, sdpa or varlen",
        )
    return kernels.attention


def has_linear_cross_entropy() -> bool:
    """Whether torch brings a linear layer and cross-entropy in one (2.13 and later)."""
    return hasattr(torch.nn.functional, "linear_cross_entropy")


def resolve_cross_entropy(kernels: KernelsConfig) -> CrossEntropy:
    """The kernel that `kernels.cross_entropy` stands for.

    Raises:
        ConfigError: torch's is asked for, and this torch has none.
    """
    if kernels.cross_entropy is not CrossEntropy.torch:
        return CrossEntropy.chunked
    if not has_linear_cross_entropy():
        raise ConfigError(
            f"kernels.cross_entropy=torch: torch {torch.__version__} has no linear_cross_entropy",
            "install torch >= 2.13, or use kernels.cross_entropy=auto",
        )
    return CrossEntropy.torch


WORTH_COMPILING = 256
"""Width from which, on a CPU, a fused kernel wins more than its call and its compilation cost."""


def fuses(kernels: KernelsConfig, model: ModelConfig) -> bool:
    """Whether the element-wise work is compiled.

    Raises:
        ConfigError: it is asked for, and torch.compile finds no compiler.
    """
    if kernels.fusion is Fusion.compiled and not can_compile():
        raise ConfigError(
            "kernels.fusion=compiled: torch.compile finds no C++ compiler",
            "install g++ or clang++, or use kernels.fusion=auto",
        )
    if kernels.fusion is not Fusion.auto:
        return kernels.fusion is Fusion.compiled
    return can_compile() and (torch.cuda.is_available() or model.hidden_size >= WORTH_COMPILING)


def describe_choice(kernels: KernelsConfig, model: ModelConfig, device: torch.device) -> str:
    """What `kernels` stands for here, in a few words."""
    fusion = Fusion.compiled if fuses(kernels, model) else Fusion.eager
    attention = dict.fromkeys(
        resolve_attention(kernels, device, full).value for full in (True, False)
    )
    return f"attention {' or '.join(attention)}, fusion {fusion.value}"


def choose_pieces(kernels: KernelsConfig, model: ModelConfig) -> Pieces:
    """The element-wise work, compiled or not."""
    return compiled_pieces() if fuses(kernels, model) else Pieces()
