"""Figures by layer from real DeepSpeed ranks against plain torch, which sees whole tensors."""

from __future__ import annotations

import optim_worker
import pytest
import torch
import world_support as support
from optim_reference import Reference, low_trace, tensors_of, trace
from optim_runs import LR, OPTIONS, run, start

from roberta_dist.optim.backends import has_cpu_adam
from roberta_dist.track.names import LAYER_GRAD_NORM, LAYER_TRUST_RATIO, LAYER_UPDATE_RATIO

pytestmark = pytest.mark.world
STEPS, WATCHED = 4, [0, 3]
CLIP, SCALE = 0.05, 1024.0
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
LAMB = [run("lamb", stage, 4, STEPS, watch=WATCHED) for stage in (0, 1, 2, 3)]
ADAMW = [run("adamw", stage, 4, STEPS, watch=WATCHED) for stage in (0, 2, 3)]
OFFLOAD = [
    run("lamb", 3, 4, STEPS, watch=WATCHED, offload="cpu"),
    run("adamw", 2, 4, STEPS, watch=WATCHED, offload="cpu"),
]
FUSED_QKV = [run("lamb", stage, 4, STEPS, watch=WATCHED, split_qkv=False) for stage in (0, 3)]
CPU_ADAM = [
    run("adamw", stage, 4, STEPS, watch=WATCHED, backend="deepspeed", **more)
    for stage, more in ((0, {}), (2, {}), (3, {"offload": "cpu"}))
    if has_cpu_adam()  # launch/setup.sh builds it
]
WITH_OPTIONS = [run("lamb", stage, 4, STEPS, watch=WATCHED, options=True) for stage in (2, 3)]
LOW = [
    run("lamb", 1, 4, STEPS, watch=WATCHED, precision="bf16"),
    run("lamb", 2, 4, STEPS, watch=WATCHED, precision="bf16"),
    run("adamw", 3, 4, STEPS, watch=WATCHED, precision="bf16"),
    run("lamb", 2, 4, STEPS, watch=WATCHED, precision="fp16", scale=SCALE),
]
CLIPPED = [run("adamw", stage, 4, STEPS, tag="clipped", watch=WATCHED) for stage in (0, 3)]
for case in CLIPPED:
    case["optim"]["max_grad_norm"] = CLIP
UNWATCHED = run("lamb", 2, 4, STEPS)


def layer(name):
    """By eye: where the parameter `name` of this model belongs."""
    head = ("head.", "next_sentence.", "vocabulary.bias")
    return name[:8] if name.startswith("layers.") else "head" if name.startswith(head) else "embeddings"  # fmt: skip


class Watched(Reference):
    """The reference, which also keeps what each step did to each layer."""

    def __init__(self, module, name, clip=0.0, **options):
        super().__init__(module, name, **options)
        self.clip_norm, self.figures, self.ratios = clip, [], []

    def _ratio(self, weight, step):
        ratio = super()._ratio(weight, step)
        self.ratios.append(ratio if weight.any() else None)  # a bias that is still 0 has none
        return ratio

    def step(self, lr):
        before = {key: p.detach().double().clone() for key, p in self.parameters.items()}
        gradients = {key: p.grad.double().clone() for key, p in self.parameters.items()}
        norm = float(torch.cat([g.flatten() for g in gradients.values()]).norm())
        if self.clip_norm:
            assert norm > self.clip_norm  # or nothing would be clipped
            for parameter in self.parameters.values():
                parameter.grad *= self.clip_norm / norm
        self.ratios.clear()
        super().step(lr)
        self.figures.append(self._by_layer(before, gradients))

    def _by_layer(self, before, gradients):
        adapted = iter(self.ratios)
        groups = {}
        for key, parameter in self.parameters.items():
            seen = groups.setdefault(layer(key), ([], [], [], []))
            moved = parameter.detach().double() - before[key]
            for part, whole in zip(seen, (gradients[key], before[key], moved), strict=False):
                part.append(whole.flatten())
            if self.name == "lamb" and (parameter.ndim > 1 or self.nvlamb):
                seen[3].extend(next(adapted) for _ in tensors_of(key, parameter, self.packed))
        figures = {}
        for name, (gradient, weight, moved, ratios) in groups.items():
            figures[LAYER_GRAD_NORM + name] = float(torch.cat(gradient).norm())
            ratio = torch.cat(moved).norm() / torch.cat(weight).norm()
            figures[LAYER_UPDATE_RATIO + name] = float(ratio)
            known = [ratio for ratio in ratios if ratio is not None]
            if known:
                figures[LAYER_TRUST_RATIO + name] = sum(known) / len(known)
        return figures


def expected_of(case):
    torch.set_num_threads(1)
    name, lr = case["optim"]["name"], LR[case["optim"]["name"]]
    options = dict(OPTIONS) if "trust_clip" in case["optim"] else {}
    options["packed"] = not case["optim"]["split_qkv"]
    rows = [optim_worker.rows_of(step) for step in range(STEPS)]
    model = optim_worker.make_model()
    if "precision" in case:
        rules = []
        steps = [[support.random_batch(r[i : i + 4]) for i in range(0, len(r), 4)] for r in rows]
        low_trace(model, lambda m: rules.append(Watched(m, name)) or rules[0], steps, lr, 2,
                  DTYPES[case["precision"]], case.get("scale", 1.0))  # fmt: skip
        return rules[0].figures
    model = model.double()
    rule = Watched(model, name, case["optim"].get("max_grad_norm", 0.0), **options)
    trace(model, rule, [support.random_batch(r) for r in rows], lr)
    return rule.figures


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    output = tmp_path_factory.mktemp("telemetry") / "two.json"
    runs = [
        *LAMB,
        *ADAMW,
        *OFFLOAD,
        *FUSED_QKV,
        *CPU_ADAM,
        *WITH_OPTIONS,
        *LOW,
        *CLIPPED,
        UNWATCHED,
    ]
    return start(2, runs, output)


@pytest.mark.parametrize(
    "case",
    [*LAMB, *ADAMW, *OFFLOAD, *FUSED_QKV, *CPU_ADAM, *WITH_OPTIONS, *LOW, *CLIPPED],
    ids=lambda case: case["key"],
)
def test_figures_are_those_of_whole_tensors(two_ranks, case):
    found, expected = two_ranks[case["key"]]["layers"], expected_of(case)
    tolerance = 1e-2 if "precision" in case else 1e-4
    for step in range(STEPS):
        if step not in WATCHED:
            assert found[step] == {}
            continue
        assert found[step].keys() == expected[step].keys()
        for name, value in expected[step].items():
            assert found[step][name] == pytest.approx(value, rel=tolerance), (step, name)


def test_every_layer_is_there_and_trust_ratios_only_with_lamb(two_ranks):
    layers = {"embeddings", "layers.0", "layers.1", "layers.2", "layers.3", "head"}
    for case, prefixes in (
        (LAMB[0], {LAYER_GRAD_NORM, LAYER_UPDATE_RATIO, LAYER_TRUST_RATIO}),
        (ADAMW[0], {LAYER_GRAD_NORM, LAYER_UPDATE_RATIO}),
    ):
        names = two_ranks[case["key"]]["layers"][0].keys()
        assert names == {prefix + layer for prefix in prefixes for layer in layers}


def test_watching_changes_nothing(two_ranks):
    watched = next(case for case in LAMB if case["stage"] == UNWATCHED["stage"])
    assert two_ranks[watched["key"]]["loss"] == two_ranks[UNWATCHED["key"]]["loss"]
