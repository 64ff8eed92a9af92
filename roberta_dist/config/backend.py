"""Which `optim.backend` may run which optimizer: a backend is a matter of speed, never of numbers."""

from __future__ import annotations

from roberta_dist.config.fields import require
from roberta_dist.config.optim import Backend, OptimConfig, Optimizer
from roberta_dist.config.train import EngineConfig, Offload


def check_backend(optim: OptimConfig, engine: EngineConfig) -> None:
    """Refuse a backend that would be another optimizer than the one asked for.

    Raises:
        ConfigError: says what would be different.
    """
    if optim.backend is Backend.deepspeed:
        require(
            optim.name is not Optimizer.lamb,
            "optim.backend",
            optim.backend.value,
            "its LAMB is another optimizer (FusedLamb adapts biases and LayerNorm too, clamps every "
            "trust ratio, and scales the weight decay by the bias correction)",
            "use optim.backend=torch",
        )
    if optim.backend is Backend.apex:
        _check_apex(optim, engine)


def _check_apex(optim: OptimConfig, engine: EngineConfig) -> None:
    require(
        engine.offload is Offload.none,
        "optim.backend",
        optim.backend.value,
        f"runs on a GPU, and engine.offload={engine.offload.value} updates on the host",
        "use optim.backend=torch or deepspeed",
    )
    if optim.name is Optimizer.lamb:
        _check_apex_lamb(optim, engine)
    require(
        engine.stage < 3,
        "optim.backend",
        optim.backend.value,
        "counts its updates by group, and engine.stage=3 calls it once for each part of a group: "
        "its bias correction would be wrong",
        "use optim.backend=torch, or engine.stage=2",
    )


def _check_apex_lamb(optim: OptimConfig, engine: EngineConfig) -> None:
    require(
        engine.stage == 0,
        "optim.backend",
        optim.backend.value,
        f"takes the trust ratios of the flat rank-local tensors of engine.stage={engine.stage}: "
        "another optimizer at every world size",
        "use optim.backend=torch, or engine.stage=0",
    )
    for key, wanted, why in (
        ("prenormalize", False, "it can clip by the global norm, but never divides by it"),
        ("trust_clip", [], "it has no bounds for the trust ratio"),
        ("split_qkv", False, "it takes a fused projection for one tensor"),
    ):
        value = vars(optim)[key]
        require(
            value == wanted,
            f"optim.{key}",
            value,
            f"is not what FusedLAMB of optim.backend=apex computes: {why}",
            f"set optim.{key}={str(wanted).lower()} or use optim.backend=torch",
        )
