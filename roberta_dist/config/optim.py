"""`optim` and `schedule`: how the weights move."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from roberta_dist.config.fields import extendable, free, identity, require


class Optimizer(str, Enum):
    """The update rule."""

    adamw = "adamw"
    lamb = "lamb"


class Backend(str, Enum):
    """Whose kernels run the update."""

    auto = "auto"
    torch = "torch"
    deepspeed = "deepspeed"
    apex = "apex"


@dataclass(frozen=True)
class OptimConfig:
    """AdamW as RoBERTa used it (Table 9), or LAMB."""

    name: Optimizer = identity(Optimizer.adamw)
    """Update rule."""
    backend: Backend = free(Backend.auto)
    """Whose kernels: `torch` (fused AdamW, compiled LAMB), `deepspeed` or `apex`; auto is torch."""
    lr: float = identity(6e-4)
    """Peak learning rate."""
    beta1: float = identity(0.9)
    """Decay of the first moment."""
    beta2: float = identity(0.98)
    """Decay of the second moment."""
    eps: float = identity(1e-6)
    """Added to the denominator."""
    weight_decay: float = identity(0.01)
    """Decoupled weight decay."""
    decay_bias_and_norm: bool = identity(False)
    """Decay biases and LayerNorm weights too (fairseq does, NVIDIA's recipes do not)."""
    max_grad_norm: float = identity(0.0)
    """Clip the global gradient norm to this; 0 is off (RoBERTa)."""
    prenormalize: bool = identity(False)
    """LAMB: divide the gradient by its global norm before the moments see it (NVIDIA's BERT)."""
    trust_clip: list[float] = identity([])
    """LAMB: smallest and largest trust ratio; empty is off (DeepSpeed's FusedLamb: [0.01, 10])."""
    nvlamb: bool = identity(False)
    """LAMB: adapt tensors without weight decay too."""
    bias_correction: bool = identity(True)
    """LAMB: divide the moments by 1 - beta^t, as AdamW always does."""

    def __post_init__(self) -> None:
        require(self.lr > 0, "optim.lr", self.lr, "must be positive")
        for key in ("beta1", "beta2"):
            value = vars(self)[key]
            require(0.0 <= value < 1.0, f"optim.{key}", value, "must be in [0, 1)")
        require(self.eps > 0, "optim.eps", self.eps, "must be positive")
        require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "must be ≥ 0")
        require(
            self.max_grad_norm >= 0,
            "optim.max_grad_norm",
            self.max_grad_norm,
            "must be ≥ 0 (0 is off)",
        )
        self._check_lamb()

    def _check_lamb(self) -> None:
        clip = self.trust_clip
        require(
            not clip or (len(clip) == 2 and 0 <= clip[0] < clip[1]),
            "optim.trust_clip",
            clip,
            "must be empty or [smallest, largest] with 0 ≤ smallest < largest",
        )
        require(
            not (self.prenormalize and self.max_grad_norm),
            "optim.max_grad_norm",
            self.max_grad_norm,
            "clips a gradient that optim.prenormalize divides by its norm anyway",
            "set one of them to off",
        )
        if self.name is not Optimizer.lamb:
            for key, default in (
                ("prenormalize", False),
                ("trust_clip", []),
                ("nvlamb", False),
                ("bias_correction", True),
            ):
                value = vars(self)[key]
                require(
                    value == default,
                    f"optim.{key}",
                    value,
                    f"has no meaning for {self.name.value}",
                    "use optim.name=lamb",
                )


class Decay(str, Enum):
    """Shape of the learning rate after warmup."""

    linear = "linear"
    polynomial = "polynomial"
    constant = "constant"


@dataclass(frozen=True)
class ScheduleConfig:
    """Warmup and decay as a pure function step → learning rate."""

    decay: Decay = identity(Decay.linear)
    """`linear` is polynomial with power 1; `constant` keeps the peak."""
    max_steps: int = extendable(500_000)
    """Optimizer steps of the whole run."""
    warmup_steps: int = identity(24_000)
    """Steps of linear warmup from peak / warmup_steps."""
    power: float = identity(1.0)
    """Exponent of `polynomial`."""
    end_lr: float = identity(0.0)
    """Learning rate at `max_steps`."""

    def __post_init__(self) -> None:
        require(self.max_steps > 0, "schedule.max_steps", self.max_steps, "must be positive")
        require(
            0 <= self.warmup_steps <= self.max_steps,
            "schedule.warmup_steps",
            self.warmup_steps,
            f"must be in [0, schedule.max_steps={self.max_steps}]",
        )
        require(self.power > 0, "schedule.power", self.power, "must be positive")
        require(self.end_lr >= 0, "schedule.end_lr", self.end_lr, "must be ≥ 0")
