"""What is installed is told apart without running it."""

import sys

import pytest
import torch

from roberta_dist.config.model import Attention, CrossEntropy, Fusion, KernelsConfig, ModelConfig
from roberta_dist.errors import ConfigError
from roberta_dist.model.kernels import (
    available_kernels,
    describe_apex,
    fuses,
    resolve_attention,
    resolve_cross_entropy,
)

pytestmark = pytest.mark.unit

EXPLOSIVE = "raise RuntimeError('executed')\n"


def package(folder, parts):
    for part in ("", *parts):
        (folder / "apex" / part).mkdir(parents=True, exist_ok=True)
        (folder / "apex" / part / "__init__.py").write_text(EXPLOSIVE)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("optimizers", "normalization"), "NVIDIA apex"),
        (("lib",), "not NVIDIA's"),
        (("optimizers",), "not NVIDIA's"),
    ],
)
def test_nvidia_s_apex_is_told_from_the_other(tmp_path, monkeypatch, parts, expected):
    package(tmp_path, parts)
    monkeypatch.syspath_prepend(tmp_path)
    assert describe_apex().startswith(expected)
    assert "apex" not in sys.modules


def test_absent_kernels_are_said_to_be_absent(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = available_kernels()
    assert found["apex"] == found["flash_attn"] == "absent"
    assert found["sdpa"].startswith("torch ")


def test_auto_resolves_to_what_can_run():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for full in (True, False):
        assert resolve_attention(KernelsConfig(), cpu, full) is Attention.blocked
        for kernel in (Attention.sdpa, Attention.varlen):
            assert resolve_attention(KernelsConfig(attention=kernel), gpu, full) is kernel
        with pytest.raises(ConfigError, match="for CPUs"):
            resolve_attention(KernelsConfig(attention=Attention.blocked), gpu, full)
    assert resolve_attention(KernelsConfig(), gpu, full=True) is Attention.sdpa
    assert resolve_attention(KernelsConfig(), gpu, full=False) is Attention.varlen


def test_torch_s_cross_entropy_needs_a_torch_that_has_it(monkeypatch):
    asked = KernelsConfig(cross_entropy=CrossEntropy.torch)
    assert resolve_cross_entropy(KernelsConfig()) is CrossEntropy.chunked
    monkeypatch.setattr("roberta_dist.model.kernels.has_linear_cross_entropy", lambda: True)
    assert resolve_cross_entropy(asked) is CrossEntropy.torch
    monkeypatch.setattr("roberta_dist.model.kernels.has_linear_cross_entropy", lambda: False)
    with pytest.raises(ConfigError, match="has no linear_cross_entropy"):
        resolve_cross_entropy(asked)


def test_fusion_needs_a_compiler(monkeypatch):
    wide, narrow = ModelConfig(), ModelConfig(hidden_size=120)
    asked = KernelsConfig(fusion=Fusion.compiled)
    if not torch.cuda.is_available():
        assert fuses(KernelsConfig(), wide)
        assert not fuses(KernelsConfig(), narrow)
    assert fuses(asked, narrow)
    monkeypatch.setattr("roberta_dist.model.kernels.can_compile", lambda: False)
    assert not fuses(KernelsConfig(), wide)
    with pytest.raises(ConfigError, match="finds no C"):
        fuses(asked, wide)
