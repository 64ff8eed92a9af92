"""Our optimizers and their backends beside independent public ones, on a real small model.

LAMB beside `pytorch_optimizer.Lamb`. By design that one corrects no bias of the moments (that is held
to a float64 formula in tests/unit/optim and tests/distributed), adapts every tensor (our `nvlamb`; a
fused projection is one tensor to it, as to our optimizer without a layout), bounds the norm of the
weight at 10 (its class attribute `clamp`, taken away here), divides the step by 1 - β₁ᵗ unless
`adam_debias` is on, and adds ε to the norm of the update: a part in 10⁷ here.
AdamW's backends beside torch's plain loop and its foreach form.

In fp32 both take the gradients of one model; in fp64 each runs on its own.
"""

from __future__ import annotations

import copy

import pytest
import pytorch_optimizer
import torch

from roberta_dist.config.model import KernelsConfig, ModelConfig
from roberta_dist.config.optim import Backend, OptimConfig, Optimizer
from roberta_dist.model.encoder import RobertaForPretraining
from roberta_dist.model.init import init_weights
from roberta_dist.optim.backends import has_cpu_adam
from roberta_dist.optim.build import build_optimizer
from roberta_dist.optim.groups import parameter_groups

pytestmark = pytest.mark.unit

MODEL = ModelConfig(
    num_layers=2, hidden_size=32, ffn_size=64, num_heads=2, max_positions=16,
    dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
VOCABULARY, ROWS, LENGTH, STEPS, PEAK = 100, 4, 16, 60, 1e-2
BETAS = (0.9, 0.98)


def small_model(dtype):
    model = RobertaForPretraining(MODEL, KernelsConfig(), VOCABULARY)
    init_weights(model, 1)
    return model.to(dtype)


def batch(step):
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(4, 20, (ROWS * LENGTH,), generator=generator)
    masked = torch.randperm(ROWS * LENGTH, generator=generator)[:10].sort().values
    return {
        "tokens_T": tokens,
        "positions_T": torch.arange(LENGTH).repeat(ROWS),
        "cu_seqlens": torch.arange(ROWS + 1).mul(LENGTH).int(),
        "max_seqlen": LENGTH,
        "masked_index_M": masked,
        "labels_M": (tokens[masked] + 1) % VOCABULARY,
    }


def train(models, optimizers, shared):
    """Steps with a warmup; with `shared` all take the gradients of the first model. Its losses."""
    losses = []
    for step in range(STEPS):
        for model, optimizer in zip(models, optimizers, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = PEAK * min(1.0, (step + 1) / 10)
            if not shared or model is models[0]:
                model.zero_grad()
                loss = model(**batch(step)) / 10
                loss.backward()
                if model is models[0]:
                    losses.append(float(loss.detach()))
                    gradients = [parameter.grad.clone() for parameter in model.parameters()]
            else:
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter.grad = gradient
            optimizer.step()
    return losses


def furthest(dtype, config, make_theirs, shared):
    """Largest relative difference of a tensor after training it with ours and with theirs."""
    ours = small_model(dtype)
    theirs = copy.deepcopy(ours)
    optimizers = [
        build_optimizer(ours, config),
        make_theirs(parameter_groups(theirs.named_parameters(), config)),
    ]
    losses = train([ours, theirs], optimizers, shared)
    assert losses[-1] < losses[0] - 1  # it learns: the way is long
    return max(
        float((found - expected).norm() / expected.norm())
        for found, expected in zip(
            map(torch.Tensor.detach, ours.parameters()),
            map(torch.Tensor.detach, theirs.parameters()),
            strict=True,
        )
    )


@pytest.mark.parametrize("decay", [0.01, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_lamb_is_the_public_one(monkeypatch, dtype, decay):
    config = OptimConfig(
        name=Optimizer.lamb, beta1=BETAS[0], beta2=BETAS[1], weight_decay=decay,
        nvlamb=True, bias_correction=False,
    )  # fmt: skip
    monkeypatch.setattr(pytorch_optimizer.Lamb, "clamp", float("inf"))

    def public(groups):
        return pytorch_optimizer.Lamb(
            groups, lr=0.0, betas=BETAS, eps=config.eps, weight_decouple=False, pre_norm=False,
            adam_debias=True,
        )  # fmt: skip

    assert furthest(dtype, config, public, shared=dtype is torch.float32) <= 1e-6


@pytest.mark.parametrize("backend", [Backend.auto, Backend.torch, Backend.deepspeed])
@pytest.mark.parametrize("foreach", [False, True])
def test_adamw_is_torch_s_plain_one(backend, foreach):
    config = OptimConfig(backend=backend, beta1=BETAS[0], beta2=BETAS[1], weight_decay=0.1)
    if backend is Backend.deepspeed and not has_cpu_adam():
        pytest.skip("DeepSpeed has no CPUAdam: launch/setup.sh builds it")

    def plain(groups):
        return torch.optim.AdamW(
            groups, lr=0.0, betas=BETAS, eps=config.eps, foreach=foreach, fused=False
        )

    # DeepSpeed's kernel holds the betas in fp32.
    limit = 2e-6 if backend is Backend.deepspeed else 1e-6
    assert furthest(torch.float32, config, plain, shared=True) <= limit
