"""The recipes have their sources' numbers, and their headers tell a cost that the code derives."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from roberta_dist.config.load import compose, conf_dir
from roberta_dist.config.optim import Decay
from roberta_dist.config.roots import LaunchConfig, PretrainConfig
from roberta_dist.optim.schedule import learning_rate, span_at
from roberta_dist.plan.flops import training_flops

pytestmark = pytest.mark.unit

VOCABULARY = 50_265
DATASHEET = {"A100": 312e12, "H100": 989.4e12}
"""Dense bf16 FLOP/s (NVIDIA's datasheets; H100 in its SXM form)."""
ASSUMED_MFU = 0.4
SHORT_NAMES = {"roberta_base": "roberta_base_8k", "roberta_large": "roberta_large_8k"}
COSTED = sorted(
    path.stem
    for path in (conf_dir() / "experiment").glob("*.yaml")
    if path.stem not in ("quickstart", *SHORT_NAMES)
)


def experiment(name: str) -> PretrainConfig:
    return compose("launch", LaunchConfig, [f"experiment={name}"]).run


def two_digits(number: float) -> str:
    return f"{int(float(f'{number:.1e}')):,}"


def stretches(config: PretrainConfig) -> list[tuple[int, int, int]]:
    """(steps, rows, tokens a row) between changes of batch or length; without ramps."""
    phases = config.data.phases
    assert not any(phase.ramp_steps for phase in phases)
    changes = [(0, config.train.global_batch_size, config.data.sequence_length)]
    changes += [(p.from_step, p.global_batch_size, p.sequence_length) for p in phases]
    ends = [step for step, _, _ in changes[1:]] + [config.schedule.max_steps]
    return [
        (end - step, rows, length) for (step, rows, length), end in zip(changes, ends, strict=True)
    ]


def flops(config: PretrainConfig) -> int:
    """Of the whole run on full rows."""
    return sum(
        steps
        * training_flops(
            config.model,
            VOCABULARY,
            [length] * rows,
            round(config.masking.probability * rows * length),
            next_sentence=config.data.format.is_pair,
        )
        for steps, rows, length in stretches(config)
    )


def test_there_are_recipes_to_cost():
    assert len(COSTED) >= 3


@pytest.mark.parametrize("name", COSTED)
def test_the_header_tells_the_cost_that_the_code_derives(name):
    text = (conf_dir() / "experiment" / f"{name}.yaml").read_text()
    header = re.sub(r"\n# *", " ", text.split("\ndefaults:")[0])
    assert "Estimate" in header and "40 % of the datasheet" in header
    total = flops(experiment(name))
    assert f"{total / 1e21:.3g} ZFLOP in all" in header
    for device, rate in DATASHEET.items():
        hours = total / (ASSUMED_MFU * rate) / 3600
        assert f"{two_digits(hours)} {device} GPU hours ({rate / 1e12:.0f} TFLOP/s" in header


@pytest.mark.parametrize(("short", "full"), SHORT_NAMES.items())
def test_a_short_name_is_the_same_recipe(short, full):
    assert experiment(short) == experiment(full)


def test_2k_batches_are_table_3():
    config, published = experiment("roberta_base_2k"), experiment("roberta_base_8k")
    assert (config.train.global_batch_size, config.optim.lr) == (2048, 7e-4)
    assert (config.schedule.max_steps, config.schedule.warmup_steps) == (125_000, 10_000)
    assert config.schedule.decay is Decay.linear
    assert (config.model, config.data) == (published.model, published.data)
    assert config.engine.precision == published.engine.precision


def test_64k_batches_are_nvidias_two_phases():
    config = experiment("bert_large_lamb_64k")
    assert stretches(config) == [(7038, 65_536, 128), (1563, 32_768, 512)]
    assert not config.data.scale_batch
    assert config.model.num_layers == 24 and config.data.format.is_pair
    optim, schedule = config.optim, config.schedule
    assert (optim.name.value, optim.weight_decay, optim.eps) == ("lamb", 0.01, 1e-6)
    assert (optim.beta1, optim.beta2, optim.max_grad_norm) == (0.9, 0.999, 1.0)
    assert not optim.trust_clip and not optim.nvlamb and not optim.decay_bias_and_norm
    assert (schedule.decay, schedule.power) == (Decay.polynomial, 0.5)
    assert schedule.decay_in_warmup
    spans = [span_at(step, optim.lr, schedule) for step in (7037, 7038)]
    assert [(span.first, span.steps, span.peak) for span in spans] == [
        (0, 7038, 6e-3),
        (7038, 1563, 4e-3),
    ]
    assert [span.warmup for span in spans] == [round(0.2843 * 7038), round(0.128 * 1563)]
    rates = [learning_rate(step, optim.lr, schedule) for step in range(schedule.max_steps)]
    assert max(rates) == rates[2001] == 6e-3 and max(rates[7038:]) == rates[7038 + 200] == 4e-3
    assert next(step for step, (a, b) in enumerate(pairwise(rates)) if b < a) == 2001
