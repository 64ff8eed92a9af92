"""LAMB whose trust ratios are those of the original tensors, however the weights are sharded.

You et al. 2020 (arXiv 1904.00962, Algorithm 2), in the form of NVIDIA's apex
(csrc/multi_tensor_lamb.cu): for gradient g of a tensor w at update t,

    m ← β₁ m + (1 - β₁) g          v ← β₂ v + (1 - β₂) g²
    u = m̂ / (√v̂ + ε) + λ w         m̂ = m / (1 - β₁ᵗ), v̂ = v / (1 - β₂ᵗ)
    w ← w - lr · (‖w‖ / ‖u‖) · u

A tensor without weight decay (λ = 0: biases, LayerNorm) takes the step with ratio 1, which is
Adam's, unless NVLAMB asks otherwise. ZeRO hands the optimizer flat rank-local partitions; a ratio
of those would be another optimizer at each world size. `bind` says which part of which tensor
every flat tensor holds, and one sum over ranks a call makes the norms whole.

State per flat tensor: `exp_avg`, `exp_avg_sq`, `step`. u overwrites the gradient, so that nothing
is held beside weight, gradient and the two moments: 16 bytes a parameter in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Direction = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

COMPILED_FROM = 1 << 22
"""Elements of one process from which compiling the arithmetic pays for its seconds."""
BLOCK = 1 << 18
"""Elements that the uncompiled arithmetic handles at a time: its temporaries stay this small."""


@dataclass(frozen=True)
class Segment:
    """A contiguous part of one tensor inside a flat one.

    Attributes:
        tensor: index of the tensor whose norm this is a part of, equal on every rank.
        offset: first element inside the flat tensor.
        length: elements.
    """

    tensor: int
    offset: int
    length: int


def _direction(weight: Tensor, gradient: Tensor, m: Tensor, v: Tensor, factors: Tensor) -> Tensor:
    """Move the moments and put u where the gradient was; returns [‖w‖², ‖u‖²], float64.

    `factors`: gradient scale, 1 - β₁, β₂, 1 - β₂, 1 / (1 - β₁ᵗ), 1 / √(1 - β₂ᵗ), ε, λ.
    """
    scaled = gradient * factors[0]
    first = m + (scaled - m) * factors[1]
    second = v * factors[2] + scaled * scaled * factors[3]
    update = first * factors[4] / (second.sqrt() * factors[5] + factors[6]) + weight * factors[7]
    m.copy_(first)
    v.copy_(second)
    gradient.copy_(update)
    return torch.stack([(weight.double() ** 2).sum(), (update.double() ** 2).sum()])


def _direction_in_blocks(
    weight: Tensor, gradient: Tensor, m: Tensor, v: Tensor, factors: Tensor
) -> Tensor:
    norms = torch.zeros(2, dtype=torch.float64, device=weight.device)
    for start in range(0, weight.numel(), BLOCK):
        part = slice(start, start + BLOCK)
        norms += _direction(weight[part], gradient[part], m[part], v[part], factors)
    return norms


class Lamb(Optimizer):
    """LAMB over whole tensors, or over ZeRO's flat ones once `bind` has explained them.

    Args:
        params: parameters or groups; `weight_decay` may differ by group.
        lr: learning rate.
        betas: decays of the moments.
        eps: added to the denominator.
        weight_decay: λ.
        bias_correction: divide the moments by 1 - βᵗ.
        trust_clip: smallest and largest trust ratio; None is off (DeepSpeed's FusedLamb has .01, 10).
        nvlamb: adapt tensors without weight decay too.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        bias_correction: bool = True,
        trust_clip: tuple[float, float] | None = None,
        nvlamb: bool = False,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        self.bias_correction = bias_correction
        self.trust_clip = trust_clip
        self.nvlamb = nvlamb
        self.gradient_scale = 1.0
        """Multiplies every gradient of the next update (pre-normalisation)."""
        self.trust_ratios: dict[int, float] = {}
        """Tensor index → ratio of its last update, equal on every rank."""
        self._segments: Mapping[Tensor, Sequence[Segment]] = {}
        self._tensors = 0
        self._all_sum: Callable[[Tensor], Tensor] = lambda norms: norms
        elements = sum(p.numel() for group in self.param_groups for p in group["params"])
        self._direction: Direction = _direction_in_blocks
        if elements >= COMPILED_FROM:
            self._direction = torch.compile(_direction, dynamic=True)

    def bind(
        self,
        segments: Mapping[Tensor, Sequence[Segment]],
        tensors: int,
        all_sum: Callable[[Tensor], Tensor],
    ) -> None:
        """Tell what the flat tensors hold; without it each tensor is taken for a whole one.

        Args:
            segments: flat tensor → its parts; elements in no part are padding.
            tensors: how many tensors there are, on all ranks together.
            all_sum: sum over the ranks that share the tensors.
        """
        self._segments = segments
        self._tensors = tensors
        self._all_sum = all_sum

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of the tensors in `param_groups`; one sum over ranks if any is adapted."""
        adapted: list[tuple[Tensor, Segment, float]] = []
        norms: list[Tensor] = []
        adapts = False
        for flat, group in self._visible():
            factors = self._factors(flat, group)
            if self.nvlamb or group["weight_decay"]:
                adapts = True
                for segment in self._segments_of(flat, len(adapted)):
                    norms.append(self._move(flat, segment, factors))
                    adapted.append((flat, segment, group["lr"]))
            else:
                self._move(flat, Segment(0, 0, flat.numel()), factors)
                flat.detach().add_(_gradient(flat), alpha=-group["lr"])
        if not adapts:
            return
        # A rank whose flat tensors are padding only has no norm to give, but is waited for.
        ratios = self._ratios([segment.tensor for _, segment, _ in adapted], norms)
        for flat, segment, lr in adapted:
            weight, update = _views(segment, flat, _gradient(flat))
            weight.add_(update, alpha=-lr * ratios[segment.tensor])

    def _visible(self) -> list[tuple[Tensor, dict[str, Any]]]:
        return [
            (flat, group)
            for group in self.param_groups
            for flat in group["params"]
            if flat.grad is not None
        ]

    def _segments_of(self, flat: Tensor, known: int) -> Sequence[Segment]:
        whole = [Segment(known, 0, flat.numel())]
        return self._segments[flat] if self._segments else whole

    def _factors(self, flat: Tensor, group: dict[str, Any]) -> Tensor:
        """Advance `step` and give the scalars of `_direction`, computed in float64: no sync."""
        state = self.state[flat]
        if not state:
            state["step"] = torch.zeros((), device=flat.device)
            state["exp_avg"] = torch.zeros_like(flat)
            state["exp_avg_sq"] = torch.zeros_like(flat)
        state["step"] += 1
        step, (beta1, beta2) = state["step"].double(), group["betas"]
        one = torch.ones_like(step)
        corrections = (1 - beta1**step, (1 - beta2**step).sqrt())
        first, second = corrections if self.bias_correction else (one, one)
        scalars = [self.gradient_scale, 1 - beta1, beta2, 1 - beta2]
        rest = [group["eps"], group["weight_decay"]]
        return torch.stack(
            [*(one * s for s in scalars), 1 / first, 1 / second, *(one * r for r in rest)]
        ).to(flat.dtype)

    def _move(self, flat: Tensor, segment: Segment, factors: Tensor) -> Tensor:
        state = self.state[flat]
        moments = (state["exp_avg"], state["exp_avg_sq"])
        weight, gradient, m, v = _views(segment, flat, _gradient(flat), *moments)
        return self._direction(weight, gradient, m, v, factors)

    def _ratios(self, tensors: Sequence[int], norms: Sequence[Tensor]) -> list[float]:
        """Trust ratio by tensor index, from this rank's parts and every other's."""
        device = self.param_groups[0]["params"][0].device if not norms else norms[0].device
        squares = torch.zeros(self._tensors or len(norms), 2, dtype=torch.float64, device=device)
        if norms:
            index = torch.tensor(tensors, device=device)
            squares.index_add_(0, index, torch.stack(list(norms)))
        weight, update = self._all_sum(squares).sqrt().unbind(1)
        both = (weight > 0) & (update > 0)
        ratios = torch.where(both, weight / torch.where(both, update, 1.0), 1.0)
        if self.trust_clip is not None:
            ratios = torch.where(both, ratios.clamp(*self.trust_clip), 1.0)
        values: list[float] = ratios.tolist()
        seen = (weight > 0).tolist()
        self.trust_ratios |= {i: ratio for i, ratio in enumerate(values) if seen[i]}
        return values


def _gradient(flat: Tensor) -> Tensor:
    assert flat.grad is not None  # only tensors with one are visible
    return flat.grad


def _views(segment: Segment, *tensors: Tensor) -> list[Tensor]:
    """The segment's elements of tensors with one layout."""
    return [
        tensor.detach().view(-1).narrow(0, segment.offset, segment.length) for tensor in tensors
    ]
