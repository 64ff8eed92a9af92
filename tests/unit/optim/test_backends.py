"""What each backend is asked for, and what is said where it cannot run."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from deepspeed.ops.adam import cpu_adam

from roberta_dist.config.optim import Backend, OptimConfig, Optimizer
from roberta_dist.errors import ConfigError
from roberta_dist.optim import backends
from roberta_dist.optim.backends import build_backend, set_step
from roberta_dist.optim.lamb import Lamb

pytestmark = pytest.mark.unit

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
RECORDER = """
import torch

class FusedAdam(torch.optim.Optimizer):
    def __init__(self, params, **told):
        self.told = told
        super().__init__(params, {"lr": told["lr"]})

class FusedLAMB(FusedAdam):
    pass
"""


def groups():
    return [
        {"params": [torch.nn.Parameter(torch.ones(2, 3))], "weight_decay": 0.01},
        {"params": [torch.nn.Parameter(torch.ones(3))], "weight_decay": 0.0},
    ]


@pytest.fixture
def apex(tmp_path, monkeypatch):
    """A package that looks like NVIDIA's and writes down what it is asked for."""
    for part in ("optimizers", "normalization"):
        (tmp_path / "apex" / part).mkdir(parents=True)
        (tmp_path / "apex" / part / "__init__.py").write_text("")
    (tmp_path / "apex" / "__init__.py").write_text("")
    (tmp_path / "apex" / "optimizers" / "__init__.py").write_text(RECORDER)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "apex"]:
        del sys.modules[name]


def test_torch_is_the_default():
    for backend in (Backend.auto, Backend.torch):
        adamw = build_backend(groups(), OptimConfig(backend=backend), CPU)
        assert type(adamw) is torch.optim.AdamW and adamw.defaults["fused"]
        lamb = build_backend(groups(), OptimConfig(name=Optimizer.lamb, backend=backend), CPU)
        assert type(lamb) is Lamb
        for optimizer in (adamw, lamb):
            assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0]
            assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]


def test_lamb_gets_its_options():
    config = OptimConfig(
        name=Optimizer.lamb, trust_clip=[0.1, 2.0], nvlamb=True, bias_correction=False
    )
    lamb = build_backend(groups(), config, CPU)
    assert (lamb.trust_clip, lamb.nvlamb, lamb.bias_correction) == ((0.1, 2.0), True, False)


def test_apex_is_asked_for_the_same_optimizer(apex):
    adamw = build_backend(groups(), OptimConfig(backend=Backend.apex), CUDA)
    assert type(adamw).__name__ == "FusedAdam"
    common = {"lr": 0.0, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.01}
    assert adamw.told == common | {"adam_w_mode": True}
    config = OptimConfig(
        name=Optimizer.lamb, backend=Backend.apex, split_qkv=False, nvlamb=True,
        bias_correction=False,
    )  # fmt: skip
    lamb = build_backend(groups(), config, CUDA)
    assert type(lamb).__name__ == "FusedLAMB"
    assert lamb.told == common | {
        "bias_correction": False, "use_nvlamb": True, "max_grad_norm": math.inf,
    }  # fmt: skip


@pytest.mark.parametrize("norm", [0.0, 1.0])
def test_apex_never_clips(apex, norm):
    """0, our "off", would make apex divide every gradient by infinity; clipping is the engine's."""
    config = OptimConfig(
        name=Optimizer.lamb, backend=Backend.apex, split_qkv=False, max_grad_norm=norm
    )
    assert build_backend(groups(), config, CUDA).told["max_grad_norm"] == math.inf


def test_apex_on_a_cpu_is_refused(apex):
    with pytest.raises(ConfigError, match=r"apex.*runs on cpu") as caught:
        build_backend(groups(), OptimConfig(backend=Backend.apex), CPU)
    assert "optim.backend=torch" in caught.value.remedy


def test_a_missing_apex_is_refused(monkeypatch):
    monkeypatch.setattr(backends, "has_nvidia_apex", lambda: False)
    with pytest.raises(ConfigError, match=r"optim.backend=apex.*not installed") as caught:
        build_backend(groups(), OptimConfig(backend=Backend.apex), CUDA)
    assert caught.value.remedy


def test_kernels_that_cannot_be_built_are_refused(monkeypatch):
    def fail(builder):
        raise RuntimeError("no compiler at all")

    monkeypatch.setattr(cpu_adam.CPUAdamBuilder, "load", fail)
    with pytest.raises(ConfigError, match=r"optim.backend=deepspeed.*no compiler") as caught:
        build_backend(groups(), OptimConfig(backend=Backend.deepspeed), CPU)
    assert "optim.backend=torch" in caught.value.remedy


def test_every_optimizer_is_told_its_step_where_it_counts(apex):
    made = groups()
    tensors = [group["params"][0] for group in made]
    adamw = build_backend(made, OptimConfig(), CPU)
    lamb = build_backend(groups(), OptimConfig(name=Optimizer.lamb), CPU)
    fused = build_backend(groups(), OptimConfig(backend=Backend.apex), CUDA)
    for optimizer in (adamw, lamb, fused):
        set_step(optimizer, tensors, 7)
    for tensor in tensors:
        for optimizer in (adamw, lamb):
            assert optimizer.state[tensor]["step"].item() == 7
        assert type(fused.state[tensor]["step"]) is int
    assert [group["step"] for group in fused.param_groups] == [7, 7]
    assert all("step" not in group for group in (*adamw.param_groups, *lamb.param_groups))
