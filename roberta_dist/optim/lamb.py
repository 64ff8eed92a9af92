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

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from roberta_dist.optim.lamb_arithmetic import (
    SMALL,
    Flat,
    Part,
    direction_in_blocks,
    direction_of,
    elements_of,
    move,
    norms_of,
    plain_step,
)

Direction = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

COMPILED_FROM = 1 << 22
"""Elements of one process from which compiling the arithmetic pays for its seconds."""


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
        self._direction: Direction = direction_in_blocks
        self._move_whole: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None] | None = None
        if elements >= COMPILED_FROM:
            self._direction = torch.compile(direction_of, dynamic=True)
            self._move_whole = torch.compile(move, dynamic=True)

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
        moving: list[Flat] = []
        adapts: torch.device | None = None
        for group in self.param_groups:
            ratio = bool(self.nvlamb or group["weight_decay"])
            for step, flats in self._by_step(group).items():
                factors = self._factors(step, group)
                scalars = flats[0].new_tensor(factors)
                if ratio:
                    adapts = flats[0].device
                else:
                    self._plain_step([f for f in flats if f.numel() <= SMALL], factors, group["lr"])
                    flats = [flat for flat in flats if flat.numel() > SMALL]
                for flat in flats:
                    parts = self._parts(flat, ratio, sum(len(known.parts) for known in moving))
                    moving.append(Flat(group["lr"], scalars, self._whole(flat), parts))
        # In tight loops: a kernel leaves nothing of the interpreter in the caches.
        norms = [self._move(flat) for flat in moving]
        # A rank whose flat tensors are padding only has no norm to give, but is waited for.
        ratios = [] if adapts is None else self._ratios(moving, norms, adapts)
        for flat_now in moving:
            for part in flat_now.parts:
                ratio_now = 1.0 if part.tensor is None else ratios[part.tensor]
                part.weight.add_(part.update, alpha=-flat_now.lr * ratio_now)

    def _by_step(self, group: dict[str, Any]) -> dict[float, list[Tensor]]:
        """Count one more update of the group's tensors; how many they have had now → tensors.

        The count lies in host memory: reading it waits for no device.
        """
        flats: dict[float, list[Tensor]] = {}
        for flat in group["params"]:
            if flat.grad is None:
                continue
            state = self.state[flat]
            if not state:
                state["step"] = torch.zeros(())
                state["exp_avg"] = torch.zeros_like(flat)
                state["exp_avg_sq"] = torch.zeros_like(flat)
            state["step"] += 1
            flats.setdefault(float(state["step"]), []).append(flat)
        return flats

    def _factors(self, step: float, group: dict[str, Any]) -> list[float]:
        """The scalars of `lamb_arithmetic`."""
        beta1, beta2 = group["betas"]
        first, second = 1.0, 1.0
        if self.bias_correction:
            first, second = 1 - beta1**step, math.sqrt(1 - beta2**step)
        moments = [self.gradient_scale, 1 - beta1, beta2, 1 - beta2, 1 / first, 1 / second]
        return [*moments, group["eps"], group["weight_decay"]]

    def _plain_step(self, flats: Sequence[Tensor], factors: Sequence[float], lr: float) -> None:
        if not flats:
            return
        gradients = [_gradient(flat) for flat in flats]
        first = [self.state[flat]["exp_avg"] for flat in flats]
        second = [self.state[flat]["exp_avg_sq"] for flat in flats]
        plain_step(list(flats), gradients, first, second, factors, lr)

    def _whole(self, flat: Tensor) -> Part:
        state = self.state[flat]
        tensors = (flat, _gradient(flat), state["exp_avg"], state["exp_avg_sq"])
        return Part(None, *(elements_of(tensor, 0, flat.numel()) for tensor in tensors))

    def _parts(self, flat: Tensor, ratio: bool, known: int) -> list[Part]:
        """The segments of `flat`; `known` counts the parts before these."""
        segments: Sequence[Segment] = [Segment(known, 0, flat.numel())]
        if ratio and self._segments:
            segments = self._segments[flat]
        state = self.state[flat]
        moments = (state["exp_avg"], state["exp_avg_sq"])
        tensors = [tensor.detach().view(-1) for tensor in (flat, _gradient(flat), *moments)]
        parts = []
        # A GPU gets the whole compiled, and plain views cost its host a third.
        cut = _view if flat.is_cuda else elements_of
        for segment in segments:
            views = (cut(tensor, segment.offset, segment.length) for tensor in tensors)
            parts.append(Part(segment.tensor if ratio else None, *views))
        return parts

    def _move(self, flat: Flat) -> Tensor:
        """Put the update where the gradient was; returns the squared norms [parts, 2]."""
        if not flat.parts:
            return flat.whole.weight.new_zeros(0, 2, dtype=torch.float64)
        if self._move_whole is not None and flat.whole.weight.is_cuda:
            # A call costs the host more than the GPU: all segments at once, then all norms.
            self._move_whole(*flat.whole[1:], flat.factors)
            return norms_of(flat.parts)
        norms = []
        for part in flat.parts:
            # What is compiled is for any length, but whether it runs in parallel is decided by the first.
            direction = self._direction if part.weight.numel() > SMALL else direction_in_blocks
            norms.append(direction(*part[1:], flat.factors))
        return torch.stack(norms)

    def _ratios(
        self, moving: Sequence[Flat], norms: Sequence[Tensor], device: torch.device
    ) -> list[float]:
        """Trust ratio by tensor index, from this rank's parts and every other's."""
        tensors = [part.tensor for flat in moving for part in flat.parts]
        squares = torch.zeros(self._tensors or len(tensors), 2, dtype=torch.float64, device=device)
        own = [(i, tensor) for i, tensor in enumerate(tensors) if tensor is not None]
        if own:
            rows, index = torch.tensor(own, device=device).unbind(1)
            squares.index_add_(0, index, torch.cat(list(norms))[rows])
        weight, update = self._all_sum(squares).sqrt().unbind(1)
        both = (weight > 0) & (update > 0)
        ratios = torch.where(both, weight / update, 1.0)
        if self.trust_clip is not None:
            ratios = torch.where(both, ratios.clamp(*self.trust_clip), 1.0)
        values: list[float] = ratios.tolist()
        seen = (weight > 0).tolist()
        self.trust_ratios |= {i: ratio for i, ratio in enumerate(values) if seen[i]}
        return values


def _view(tensor: Tensor, offset: int, length: int) -> Tensor:
    return tensor.narrow(0, offset, length)


def _gradient(flat: Tensor) -> Tensor:
    assert flat.grad is not None  # only tensors with one are visible
    return flat.grad
