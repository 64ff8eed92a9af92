"""Every yaml composes, says what its dataclass says, and survives the way to a worker."""

from __future__ import annotations

from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from roberta_dist.config.data import DataConfig, InputFormat
from roberta_dist.config.load import compose, conf_dir, flatten, load_yaml, to_yaml
from roberta_dist.config.optim import Decay, Optimizer
from roberta_dist.config.roots import VERB_CONFIGS, LaunchConfig, PrepareConfig, PretrainConfig
from roberta_dist.config.train import Precision
from roberta_dist.plan.flops import parameter_count

pytestmark = pytest.mark.unit

CONF = conf_dir()
REQUIRED = {
    "evaluate": ["run_dir=runs/x"],
    "export": ["run_dir=runs/x"],
    "predict": ["model_path=x", "text=[a]"],
    "report": ["run_dir=runs/x"],
    "status": ["run_dir=runs/x"],
    "logs": ["run_dir=runs/x"],
    "stop": ["run_dir=runs/x"],
}
"""What a verb cannot do without."""
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
OPTIONS = sorted(
    f"{path.parent.name}={path.stem}"
    for path in CONF.glob("*/*.yaml")
    if path.parent.name != "experiment"
)


def required(verb: str) -> list[str]:
    return REQUIRED.get(verb, [])


def raw(verb: str, overrides: list[str]) -> dict:
    """What the yamls compose to, before any dataclass fills a gap."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        composed = hydra.compose(verb, overrides=overrides)
    return OmegaConf.to_container(composed, resolve=True)


def keys(values: dict, prefix: str = "") -> set[str]:
    names = set()
    for key, value in values.items():
        is_group = isinstance(value, dict)
        names |= keys(value, f"{prefix}{key}.") if is_group else {f"{prefix}{key}"}
    return names


def test_each_verb_has_one_yaml():
    assert {path.stem for path in CONF.glob("*.yaml")} == set(VERB_CONFIGS)


@pytest.mark.parametrize("verb", VERB_CONFIGS)
def test_a_verb_composes_to_its_defaults(verb):
    """The yaml repeats the dataclass, so that `--cfg job` shows every key with its real default."""
    composed = compose(verb, VERB_CONFIGS[verb], required(verb))
    assert keys(raw(verb, required(verb))) == set(flatten(composed))
    given = {override.split("=")[0] for override in required(verb)}
    for group in vars(composed):
        if group not in given and hasattr(type(composed), group):
            assert getattr(composed, group) == getattr(type(composed), group)
        elif hasattr(getattr(composed, group), "__dataclass_fields__"):
            assert getattr(composed, group) == type(getattr(composed, group))()


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_of_a_group_composes(option):
    group = option.split("=")[0]
    verb = "prepare" if hasattr(PrepareConfig(), group) else "pretrain"
    overrides = [option]
    if group == "corpus" and option not in ("corpus=docstrings", "corpus=quickstart"):
        overrides.append("corpus.paths=[texts]")
    composed = compose(verb, VERB_CONFIGS[verb], overrides)
    assert keys(raw(verb, overrides)) == set(flatten(composed))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_recipe_composes_alike_for_both_verbs(name):
    config = compose("pretrain", PretrainConfig, [f"experiment={name}"])
    assert config == compose("launch", LaunchConfig, [f"experiment={name}"]).run
    assert config != PretrainConfig()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_recipe_says_how_it_is_started(name):
    lines = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    header = [line for line in lines if line.startswith("#")]
    assert header[0] == "# @package _global_"
    assert any(f"roberta-dist launch experiment={name}" in line for line in header)


@pytest.mark.parametrize(
    ("name", "lr", "warmup", "parameters"),
    [("roberta_base", 6e-4, 24_000, 124_696_665), ("roberta_large", 4e-4, 30_000, 355_411_033)],
)
def test_the_published_recipes_are_table_9(name, lr, warmup, parameters):
    config = compose("launch", LaunchConfig, [f"experiment={name}"]).run
    assert parameter_count(config.model, 50_265) == parameters
    assert (config.model.dropout, config.model.attention_dropout) == (0.1, 0.1)
    assert config.data.sequence_length == config.model.max_positions == 512
    assert config.data.format is InputFormat.full_sentences
    assert config.train.global_batch_size == 8192
    assert config.optim.name is Optimizer.adamw
    assert (config.optim.lr, config.optim.weight_decay, config.optim.eps) == (lr, 0.01, 1e-6)
    assert (config.optim.beta1, config.optim.beta2) == (0.9, 0.98)
    assert config.optim.max_grad_norm == 0.0
    assert config.schedule.decay is Decay.linear
    assert (config.schedule.max_steps, config.schedule.warmup_steps) == (500_000, warmup)
    assert (config.engine.stage, config.engine.precision) == (1, Precision.bf16)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_worker_reads_what_the_launcher_wrote(name, tmp_path: Path):
    config = compose("launch", LaunchConfig, [f"experiment={name}", "track.wandb_name='a: #1'"]).run
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert load_yaml(PretrainConfig, path) == config


@pytest.mark.parametrize("name", ["a${b}", r"a\${b}", r"\\${oc.env:HOME}", "$(x) `y`\n'z\"", "${"])
def test_a_name_with_dollar_and_brace_reaches_the_workers_as_it_is(tmp_path, name):
    data = DataConfig(corpora={"one": name}, weights={"one": 1.0})
    config = PretrainConfig(run_dir=name, data=data)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_yaml(PretrainConfig, tmp_path / "config.yaml") == config
