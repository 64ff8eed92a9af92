"""Optimizers on a GPU: ours and each backend's kernels beside float64 formulas, and what offload saves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from roberta_dist.config.optim import Backend, OptimConfig, Optimizer
from roberta_dist.model.kernels import has_nvidia_apex
from roberta_dist.optim import lamb as lamb_module
from roberta_dist.optim.backends import build_backend, set_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]
needs_apex = pytest.mark.skipif(not has_nvidia_apex(), reason="NVIDIA's apex is not installed")
LR, STEPS, DECAY = 1e-2, 60, 0.1
SHAPES = ((301, 70), (64, 64), (70,), (33,))
CUDA = torch.device("cuda")


def tensors():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def gradient(step, index):
    generator = torch.Generator().manual_seed(1000 + 10 * step + index)
    return torch.randn(SHAPES[index], generator=generator)


def formula(config):
    """Weights after `STEPS`, float64, from the papers."""
    weights = [w.double() for w in tensors()]
    moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in weights]
    for t in range(1, STEPS + 1):
        for index, (w, (m, v)) in enumerate(zip(weights, moments, strict=True)):
            g = gradient(t, index).double()
            m.copy_(config.beta1 * m + (1 - config.beta1) * g)
            v.copy_(config.beta2 * v + (1 - config.beta2) * g * g)
            m_hat, v_hat = m / (1 - config.beta1**t), v / (1 - config.beta2**t)
            decay = DECAY if w.ndim > 1 else 0.0
            u = m_hat / (v_hat.sqrt() + config.eps) + decay * w
            adapted = config.name is Optimizer.lamb and (decay or config.nvlamb)
            w -= LR * (float(w.norm() / u.norm()) if adapted else 1.0) * u
    return weights


def train(config):
    """The same with the backend's kernels, fp32; half of it after a change of its step from outside."""
    parameters = [torch.nn.Parameter(w.to(CUDA)) for w in tensors()]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = build_backend(groups, config, CUDA)
    for parameter in parameters:
        for moment in ("exp_avg", "exp_avg_sq"):
            optimizer.state[parameter][moment] = torch.zeros_like(parameter.detach())
    set_step(optimizer, parameters, 0)
    for group in optimizer.param_groups:
        group["lr"] = LR
    for t in range(1, STEPS + 1):
        for index, parameter in enumerate(parameters):
            parameter.grad = gradient(t, index).to(CUDA)
        optimizer.step()
        if t == STEPS // 2:  # as a checkpoint does
            set_step(optimizer, parameters, t)
    return [parameter.detach().cpu().double() for parameter in parameters]


def check(config):
    for found, expected in zip(train(config), formula(config), strict=True):
        assert float((found - expected).norm() / expected.norm()) <= 2e-6


@pytest.mark.parametrize("nvlamb", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_our_lamb(monkeypatch, nvlamb, compiled):
    if compiled:
        monkeypatch.setattr(lamb_module, "COMPILED_FROM", 1)
        monkeypatch.setattr(lamb_module, "SMALL", 1)
    check(OptimConfig(name=Optimizer.lamb, nvlamb=nvlamb))


@pytest.mark.parametrize("backend", [Backend.torch, Backend.deepspeed])
def test_adamw(backend):
    check(OptimConfig(backend=backend))


@needs_apex
def test_apex_adamw():
    check(OptimConfig(backend=Backend.apex))


@needs_apex
@pytest.mark.parametrize("nvlamb", [False, True])
def test_apex_lamb(nvlamb):
    check(OptimConfig(name=Optimizer.lamb, backend=Backend.apex, split_qkv=False, nvlamb=nvlamb))


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_offload_keeps_the_optimizer_off_the_gpu(tmp_path, name):
    """12 bytes a parameter (fp32 weight and two moments) leave the GPU at ZeRO 2 with bf16."""
    peaks = {}
    for offload in ("none", "cpu"):
        output = tmp_path / f"{offload}.json"
        script = Path(__file__).with_name("offload_worker.py")
        environ = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
        command = [sys.executable, str(script), name, offload, str(output)]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
        peaks[offload] = json.loads(output.read_text())
    saved = peaks["none"]["bytes"] - peaks["cpu"]["bytes"]
    assert saved >= 0.9 * 12 * peaks["none"]["parameters"], peaks
    assert peaks["cpu"]["loss"] == pytest.approx(peaks["none"]["loss"], rel=1e-3)
