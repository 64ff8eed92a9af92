"""`optim` and `schedule`: how the weights move."""

from __future__ import annotations

import math
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
    """Whose kernels: `torch` (fused AdamW, our compiled LAMB), `deepspeed` (AdamW) or `apex`; the
    numbers are the same. `auto` is torch: DeepSpeed's CPUAdam saves less than a tenth of its time."""
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
    """LAMB: divide the gradient by its global norm before the moments see it (NVIDIA's NVLAMB)."""
    trust_clip: list[float] = identity([])
    """LAMB: smallest and largest trust ratio; empty is off (DeepSpeed's FusedLamb: [0.01, 10])."""
    nvlamb: bool = identity(False)
    """LAMB: adapt tensors without weight decay too."""
    bias_correction: bool = identity(True)
    """LAMB: divide the moments by 1 - beta^t, as AdamW always does."""
    split_qkv: bool = identity(True)
    """LAMB: query, key and value projections have a trust ratio each, as if they were stored apart;
    false gives one to the fused projection, as apex's FusedLAMB does."""

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
                ("split_qkv", True),
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
    """Shape of the learning rate after warmup; docs/schedules.md draws each."""

    linear = "linear"
    polynomial = "polynomial"
    cosine = "cosine"
    inverse_sqrt = "inverse_sqrt"
    wsd = "wsd"
    constant = "constant"


class Cooldown(str, Enum):
    """Shape of the last part of `wsd` (Hägele et al. 2024)."""

    one_minus_sqrt = "one_minus_sqrt"
    linear = "linear"


@dataclass(frozen=True)
class SchedulePhase:
    """At a step the schedule begins anew, with a peak and a warmup of its own.

    It lasts to the next phase, or to `max_steps`, and is what a run of so many steps would be.
    """

    from_step: int = identity(0)
    """First step of the phase."""
    lr: float = identity(0.0)
    """Its peak learning rate."""
    warmup_steps: int = identity(0)
    """Steps of its linear warmup."""
    warmup_fraction: float = identity(0.0)
    """The same as a share of the steps of the phase; 0 where `warmup_steps` says it."""

    def __post_init__(self) -> None:
        require(self.from_step > 0, "schedule.phases: from_step", self.from_step, "must be ≥ 1")
        positive = 0 < self.lr < math.inf
        require(positive, "schedule.phases: lr", self.lr, "must be a positive, finite number")


@dataclass(frozen=True)
class ScheduleConfig:
    """Warmup and decay as a pure function step → learning rate."""

    decay: Decay = identity(Decay.linear)
    """`linear` is polynomial with power 1; `constant` keeps the peak; `inverse_sqrt` and `constant`
    do not ask how long the run will be, nor does `wsd` before its last part."""
    max_steps: int = extendable(500_000)
    """Optimizer steps of the whole run."""
    warmup_steps: int = identity(24_000)
    """Steps of linear warmup from peak / warmup_steps."""
    warmup_fraction: float = identity(0.0)
    """Warmup as a share of the steps up to the first phase or `max_steps`, to the nearest step; with
    `warmup_steps: 0`."""
    decay_in_warmup: bool = identity(False)
    """Count the steps of warmup as decay too, so that the rate drops below the peak where warmup ends
    (`linear`, `polynomial`, `cosine`; Google's and NVIDIA's BERT)."""
    power: float = identity(1.0)
    """Exponent of `polynomial`."""
    end_lr: float = identity(0.0)
    """Learning rate at `max_steps`, and at the end of each phase."""
    decay_steps: int = identity(0)
    """Steps of the last part of `wsd`."""
    decay_fraction: float = identity(0.0)
    """The same as a share of the steps of a phase (of `max_steps` where there is one), to the nearest
    step; with `decay_steps: 0`."""
    cooldown: Cooldown = identity(Cooldown.one_minus_sqrt)
    """Shape of the last part of `wsd`."""
    phases: list[SchedulePhase] = extendable([])
    """Steps at which the schedule begins anew, each with its peak and warmup, in order. `optim.lr` and
    the warmup above are those of the steps before the first."""

    def __post_init__(self) -> None:
        require(self.max_steps > 0, "schedule.max_steps", self.max_steps, "must be positive")
        require(self.power > 0, "schedule.power", self.power, "must be positive")
        require(self.end_lr >= 0, "schedule.end_lr", self.end_lr, "must be ≥ 0")
        first = 0
        for phase in self.phases:
            inside = first < phase.from_step < self.max_steps
            rule = f"must be after {first} and before schedule.max_steps={self.max_steps}"
            require(inside, "schedule.phases: from_step", phase.from_step, rule)
            first = phase.from_step
        self._check_parts("schedule.", 0, self.warmup_steps, self.warmup_fraction)
        for phase in self.phases:
            self._check_parts(
                "schedule.phases: ", phase.from_step, phase.warmup_steps, phase.warmup_fraction
            )
        decays = self.decay_steps > 0 or self.decay_fraction > 0
        require(
            decays == (self.decay is Decay.wsd),
            "schedule.decay",
            self.decay.value,
            "wsd, and no other decay, has decay_steps or decay_fraction",
            "schedule=wsd takes the last fifth; another decay wants both at 0",
        )

    def steps_from(self, first: int) -> int:
        """Steps of the phase that begins at `first`, which is 0 or a phase's `from_step`."""
        later = [phase.from_step for phase in self.phases if phase.from_step > first]
        return (later[0] if later else self.max_steps) - first

    def _check_parts(self, prefix: str, first: int, warmup: int, warmup_fraction: float) -> None:
        """Warmup and the last part of one phase: each said once, and both fit."""
        steps = self.steps_from(first)
        where = f"[0, {steps}], the steps from {first} to the next phase or schedule.max_steps={self.max_steps}"
        lengths = {"warmup": (prefix, warmup, warmup_fraction)}
        lengths["decay"] = ("schedule.", self.decay_steps, self.decay_fraction)
        for name, (group, count, fraction) in lengths.items():
            key = f"{group}{name}_steps"
            require(0 <= count <= steps, key, count, f"must be in {where}")
            require(0 <= fraction <= 1, f"{group}{name}_fraction", fraction, "must be in [0, 1]")
            require(
                count == 0 or fraction == 0,
                key,
                count,
                f"and {name}_fraction={fraction} both say how long the {name} is",
                f"set {key}=0 to use the fraction",
            )
        total = part_steps(warmup, warmup_fraction, steps)
        total += part_steps(self.decay_steps, self.decay_fraction, steps)
        require(total <= steps, f"{prefix}warmup + schedule.decay", total, f"must be in {where}")


def part_steps(count: int, fraction: float, steps: int) -> int:
    """Length of a part of `steps` steps that is given as a count or as a fraction; the other is 0."""
    return count + round(fraction * steps)
