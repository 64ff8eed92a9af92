from __future__ import annotations

import pytest

from roberta_dist.config.train import EngineConfig, Precision
from roberta_dist.engine.ds_config import deepspeed_config
from roberta_dist.engine.guards import charge_skip, is_finite
from roberta_dist.errors import ConfigError, NonFiniteError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_defaults_of_deepspeed_are_overruled(stage):
    config = deepspeed_config(EngineConfig(stage=stage), 4, 8, 0.0, accelerator=False)
    assert config["gradient_clipping"] == 0.0
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert config["communication_data_type"] == "fp32"
    assert config["timers"] == {"throughput": {"enabled": False}}
    assert config["zero_optimization"]["stage"] == stage
    assert ("sub_group_size" in config["zero_optimization"]) == (stage == 3)


def test_bf16_without_sharding_is_refused_with_the_way_out():
    with pytest.raises(ConfigError, match=r"engine\.stage=1"):
        EngineConfig(stage=0, precision=Precision.bf16)


def test_guard():
    assert is_finite(1.0, 2.0)
    assert not is_finite(float("nan"), 2.0)
    assert not is_finite(1.0, float("inf"))
    assert not is_finite(1.0, float("nan"), 2.0)
    assert charge_skip(5, float("nan"), 1.0, (40, 48), charged=0, budget=2) == 1
    with pytest.raises(NonFiniteError, match=r"step 5: loss=nan .* rows \[40, 48\)"):
        charge_skip(5, float("nan"), 1.0, (40, 48), charged=2, budget=2)
