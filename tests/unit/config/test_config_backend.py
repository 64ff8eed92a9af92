"""A backend of the optimizer that would be another optimizer is refused, with the reason."""

from __future__ import annotations

from dataclasses import replace

import pytest

from roberta_dist.config.optim import Backend, OptimConfig, Optimizer
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.config.train import EngineConfig, Offload
from roberta_dist.errors import ConfigError

pytestmark = pytest.mark.unit

APEX_LAMB = {"name": Optimizer.lamb, "backend": Backend.apex, "split_qkv": False}
ZERO0 = {"stage": 0}


def make_config(optim, engine):
    return replace(PretrainConfig(), optim=OptimConfig(**optim), engine=EngineConfig(**engine))


@pytest.mark.parametrize(
    ("optim", "engine", "said"),
    [
        ({"name": Optimizer.lamb, "backend": Backend.deepspeed}, {}, "another optimizer"),
        (APEX_LAMB, {"stage": 1}, "rank-local"),
        (APEX_LAMB, {"stage": 2}, "engine.stage=2"),
        (APEX_LAMB, {"stage": 3}, "every world size"),
        (APEX_LAMB | {"split_qkv": True}, ZERO0, "optim.split_qkv=True"),
        (APEX_LAMB | {"trust_clip": [0.01, 10.0]}, ZERO0, "optim.trust_clip=[0.01, 10.0]"),
        (APEX_LAMB | {"prenormalize": True}, ZERO0, "optim.prenormalize=True"),
        ({"backend": Backend.apex}, {"stage": 3}, "bias correction"),
        ({"backend": Backend.apex}, {"stage": 2, "offload": Offload.cpu}, "engine.offload=cpu"),
    ],
)
def test_another_optimizer_is_refused(optim, engine, said):
    with pytest.raises(ConfigError, match="optim\\.") as caught:
        make_config(optim, engine)
    assert said in str(caught.value)
    assert "optim.backend=torch" in caught.value.remedy


@pytest.mark.parametrize(
    ("optim", "engine"),
    [
        (APEX_LAMB, ZERO0),
        (APEX_LAMB | {"nvlamb": True, "bias_correction": False}, ZERO0),
        *(({"backend": Backend.apex}, {"stage": stage}) for stage in (0, 1, 2)),
        *(({"backend": Backend.deepspeed}, {"stage": stage}) for stage in (0, 1, 2, 3)),
        ({"backend": Backend.deepspeed}, {"stage": 2, "offload": Offload.cpu}),
        ({"name": Optimizer.lamb, "trust_clip": [0.01, 10.0]}, {"stage": 3}),
    ],
)
def test_the_same_optimizer_is_allowed(optim, engine):
    assert make_config(optim, engine).optim.backend is optim.get("backend", Backend.auto)


def test_a_key_of_lamb_has_no_meaning_for_adamw():
    with pytest.raises(ConfigError, match="has no meaning for adamw"):
        OptimConfig(split_qkv=False)
