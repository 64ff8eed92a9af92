"""Figures by layer against weights and gradients that are kept and compared, in one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from roberta_dist.config.model import KernelsConfig, ModelConfig
from roberta_dist.config.optim import OptimConfig, Optimizer
from roberta_dist.engine import telemetry
from roberta_dist.engine.segments import bind_lamb, tensor_names
from roberta_dist.engine.telemetry import LayerWatch
from roberta_dist.model.encoder import RobertaForPretraining, layer_of
from roberta_dist.model.init import init_weights
from roberta_dist.optim.build import build_optimizer
from roberta_dist.track.names import LAYER_GRAD_NORM, LAYER_TRUST_RATIO, LAYER_UPDATE_RATIO

pytestmark = pytest.mark.unit

CONFIG = ModelConfig(num_layers=2, hidden_size=8, ffn_size=12, num_heads=2, max_positions=16)
CPU = torch.device("cpu")
LAYERS = ("embeddings", "layers.0", "layers.1", "head")


@dataclass
class Whole:
    """What a DeepSpeed engine of stage 0 shows of itself."""

    module: nn.Module

    def zero_optimization_stage(self) -> int:
        return 0


def build(rule, **options):
    model = RobertaForPretraining(CONFIG, KernelsConfig(), 50)
    init_weights(model, 1)
    config = OptimConfig(name=Optimizer(rule), **options)
    optimizer = build_optimizer(model, config)
    if rule == "lamb":
        bind_lamb(Whole(model), optimizer, CPU)
    watch = LayerWatch(Whole(model), optimizer, config, CPU)
    return model, optimizer, watch


def update(model, optimizer, lr, seed) -> Callable[[], None]:
    """Sets gradients and gives what makes one update."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    for group in optimizer.param_groups:
        group["lr"] = lr
    return optimizer.step


def by_layer(values):
    """Layer → norm of all its tensors together; `values` by parameter name."""
    own = {layer: [v.flatten() for n, v in values.items() if layer_of(n) == layer] for layer in LAYERS}  # fmt: skip
    return {layer: float(torch.cat(tensors).double().norm()) for layer, tensors in own.items()}


def copies(model, of=lambda parameter: parameter):
    return {name: of(p).detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("block", [7, 1 << 20])
@pytest.mark.parametrize("rule", ["adamw", "lamb"])
def test_figures_are_those_of_weights_that_were_kept(rule, block, monkeypatch):
    monkeypatch.setattr(telemetry, "BLOCK", block)
    model, optimizer, watch = build(rule, weight_decay=0.3)
    for number, lr in ((1, 0.1), (2, 0.02), (3, 0.05)):
        act = update(model, optimizer, lr, number)
        before = copies(model)
        gradient = by_layer(copies(model, lambda p: p.grad))
        total = sum(value**2 for value in gradient.values()) ** 0.5
        figures = watch.during(act, number, total)
        weight = by_layer(before)
        moved = by_layer({name: w - before[name] for name, w in copies(model).items()})
        for layer in LAYERS:
            assert figures[LAYER_GRAD_NORM + layer] == pytest.approx(gradient[layer], rel=1e-6)
            ratio = moved[layer] / weight[layer]
            assert figures[LAYER_UPDATE_RATIO + layer] == pytest.approx(ratio, rel=1e-5)


def test_trust_ratio_is_the_mean_of_the_tensors_that_have_one():
    model, optimizer, watch = build("lamb")
    figures = watch.during(update(model, optimizer, 0.1, 1), 1, 1.0)
    names = tensor_names(Whole(model))
    for layer in LAYERS:
        own = [optimizer.trust_ratios[i] for i, name in enumerate(names)
               if layer_of(name) == layer and "norm" not in name and "bias" not in name]  # fmt: skip
        assert len(own) == {"embeddings": 2, "head": 1}.get(layer, 6)
        assert figures[LAYER_TRUST_RATIO + layer] == pytest.approx(sum(own) / len(own))


def test_gradient_norms_are_those_before_clipping():
    """The optimizer sees clipped gradients; what a watched step tells adds up to `grad_norm`."""
    model, optimizer, watch = build("adamw")
    act = update(model, optimizer, 0.1, 1)
    gradient = by_layer(copies(model, lambda p: p.grad))
    total = sum(value**2 for value in gradient.values()) ** 0.5
    for parameter in model.parameters():
        parameter.grad *= 0.01
    figures = watch.during(act, 1, total)
    for layer in LAYERS:
        assert figures[LAYER_GRAD_NORM + layer] == pytest.approx(gradient[layer], rel=1e-6)


def test_an_unwatched_update_has_no_hooks():
    model, optimizer, watch = build("adamw")
    seen = []

    def act():
        seen.append(len(optimizer._optimizer_step_pre_hooks))
        optimizer.step()

    update(model, optimizer, 0.1, 1)
    assert watch.during(act, 0, 1.0) == {}
    assert watch.during(act, 2, 1.0) != {}
    assert seen == [0, 1]
    with pytest.raises(ZeroDivisionError):
        watch.during(lambda: 1 / 0, 3, 1.0)
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


def test_of_a_lamb_that_is_not_ours_only_gradients_are_told():
    model, _, _ = build("lamb")
    foreign = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = LayerWatch(Whole(model), foreign, OptimConfig(name=Optimizer.lamb), CPU)
    figures = watch.during(update(model, foreign, 0.1, 1), 1, 1.0)
    assert figures.keys() == {LAYER_GRAD_NORM + layer for layer in LAYERS}


def test_gradients_of_zero_are_zero():
    model, optimizer, watch = build("adamw", weight_decay=0.0)
    act = update(model, optimizer, 0.1, 1)
    optimizer.zero_grad(set_to_none=False)
    figures = watch.during(act, 1, 0.0)
    assert set(figures.values()) == {0.0}
