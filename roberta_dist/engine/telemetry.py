"""What each layer did in one update: gradient norm, relative size of the update, trust ratio.

The figures are those of the original tensors at any ZeRO stage and world size: hooks around the
optimizer's `step` see the flat tensors as DeepSpeed hands them over, `engine.segments` says what
they hold, and one sum over ranks makes the squares whole. In a watched step the flat weights and
the gradient are read before the update, and after it what tells Δw without a copy of the weights:

    LAMB     Δw = lr · r · u        u, which LAMB leaves where the gradient was; r, the trust ratio
    AdamW    Δw = lr · (d + λ w') / (1 - lr · λ)    d = m̂ / (√v̂ + ε), w' the weight after the update

The latter is lr · (d + λ w) solved for w' = w - Δw. Temporaries are of BLOCK elements. A step that
is not watched has no hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from roberta_dist.config.optim import OptimConfig
from roberta_dist.config.optim import Optimizer as Name
from roberta_dist.engine.layout import flat_tensors, zero_stage
from roberta_dist.engine.segments import tensor_names, tensor_segments
from roberta_dist.model.encoder import layer_of
from roberta_dist.optim.lamb import Lamb, Segment
from roberta_dist.runtime.dist import all_sum
from roberta_dist.track.names import LAYER_GRAD_NORM, LAYER_TRUST_RATIO, LAYER_UPDATE_RATIO

BLOCK = 1 << 20
"""Elements looked at in one go."""
GRADIENT, WEIGHT, UPDATE = range(3)
"""Columns of the squares."""


class LayerWatch:
    """Measures chosen updates.

    Args:
        engine: DeepSpeed's, initialised.
        optimizer: the one it was initialised with.
        config: of that optimizer.
        device: where collectives run; with offload the flat tensors are elsewhere.
    """

    def __init__(
        self, engine: Any, optimizer: Optimizer, config: OptimConfig, device: torch.device
    ) -> None:
        self._engine = engine
        self._optimizer = optimizer
        self._lamb = optimizer if isinstance(optimizer, Lamb) else None
        # What another library's LAMB did is not told by what it leaves behind.
        self._tells_update = config.name is Name.adamw or self._lamb is not None
        self._split_qkv = config.split_qkv
        self._device = device

    def during(self, act: Callable[[], None], update: int, grad_norm: float) -> dict[str, float]:
        """Run `act`, which makes one update of every tensor, and tell what it did.

        Args:
            act: calls the engine's step.
            update: number of this update, from 1; 0 only runs `act`.
            grad_norm: global gradient norm before clipping.

        Returns:
            `track.names.LAYER_METRICS` of every layer, equal on every rank; {} without `update`.
        """
        if not update:
            act()
            return {}
        names = tensor_names(self._engine, self._split_qkv)
        device = flat_tensors(self._engine)[0].device
        squares = torch.zeros(len(names), 3, dtype=torch.float64, device=device)
        segments = tensor_segments(self._engine, self._split_qkv)
        hooks = [
            self._optimizer.register_step_pre_hook(
                lambda *_: _look_before(self._optimizer, segments, squares)
            ),
            self._optimizer.register_step_post_hook(
                lambda *_: self._look_after(segments, squares, update)
            ),
        ]
        try:
            act()
        finally:
            for hook in hooks:
                hook.remove()
        if zero_stage(self._engine) != 0:  # otherwise every rank holds all of it
            squares = all_sum(squares.to(self._device))
        return self._figures(names, squares.cpu(), grad_norm)

    def _look_after(
        self, segments: Mapping[Tensor, Sequence[Segment]], squares: Tensor, update: int
    ) -> None:
        if not self._tells_update:
            return
        for flat, group, segment in _visible(self._optimizer, segments):
            scale, total = group["lr"], squares[segment.tensor, UPDATE]
            if self._lamb is not None:
                scale *= self._lamb.trust_ratios.get(segment.tensor, 1.0)
                total += _square(flat.grad, segment) * scale**2
                continue
            state = self._optimizer.state[flat]
            moments = (state["exp_avg"], state["exp_avg_sq"])
            for weight, m, v in _blocks(segment, flat, *moments):
                total += _norm_square(_adamw_update(weight, m, v, group, update))

    def _figures(self, names: list[str], squares: Tensor, grad_norm: float) -> dict[str, float]:
        """Squares by tensor → metrics by layer."""
        layers = [layer_of(name) for name in names]
        figures: dict[str, float] = {}
        # What the optimizer saw may have been clipped: the squares are to add up to grad_norm's.
        total = float(squares[:, GRADIENT].sum().sqrt())
        unclip = grad_norm / total if total > 0 else 1.0
        ratios = self._lamb.trust_ratios if self._lamb is not None else {}
        for layer in dict.fromkeys(layers):
            own = [index for index, name in enumerate(layers) if name == layer]
            gradient, weight, moved = squares[own].sum(0).sqrt().tolist()
            figures[LAYER_GRAD_NORM + layer] = gradient * unclip
            if self._tells_update and weight > 0:
                figures[LAYER_UPDATE_RATIO + layer] = moved / weight
            adapted = [ratios[index] for index in own if index in ratios]
            if adapted:
                figures[LAYER_TRUST_RATIO + layer] = sum(adapted) / len(adapted)
        return figures


def _look_before(
    optimizer: Optimizer, segments: Mapping[Tensor, Sequence[Segment]], squares: Tensor
) -> None:
    for flat, _, segment in _visible(optimizer, segments):
        squares[segment.tensor, GRADIENT] += _square(flat.grad, segment)
        squares[segment.tensor, WEIGHT] += _square(flat, segment)


def _visible(
    optimizer: Optimizer, segments: Mapping[Tensor, Sequence[Segment]]
) -> Iterator[tuple[Tensor, dict[str, Any], Segment]]:
    """What this call of the optimizer is about: ZeRO hides the other groups and sub-groups."""
    for group in optimizer.param_groups:
        for flat in group["params"]:
            if flat.grad is not None:
                yield from ((flat, group, segment) for segment in segments.get(flat, ()))


def _blocks(segment: Segment, *tensors: Tensor) -> Iterator[list[Tensor]]:
    """The segment's elements of tensors with one layout, a block at a time."""
    end = segment.offset + segment.length
    for start in range(segment.offset, end, BLOCK):
        length = min(BLOCK, end - start)
        yield [tensor.detach().view(-1).narrow(0, start, length) for tensor in tensors]


def _norm_square(values: Tensor) -> Tensor:
    """‖block‖², float64. torch sums pairwise: 2e-8 off, a sixth of the time of float64 squares."""
    return (values * values).sum().double()


def _square(tensor: Tensor | None, segment: Segment) -> Tensor:
    """‖segment‖², float64."""
    assert tensor is not None  # only tensors with a gradient are visible
    return torch.stack([_norm_square(part) for (part,) in _blocks(segment, tensor)]).sum()


def _adamw_update(
    weight: Tensor, m: Tensor, v: Tensor, group: Mapping[str, Any], update: int
) -> Tensor:
    """Δw of the update that left `weight`, `m` and `v`."""
    (beta1, beta2), decay, lr = group["betas"], group["weight_decay"], group["lr"]
    root = (v / (1 - beta2**update)).sqrt_().add_(group["eps"])
    direction: Tensor = (m / (1 - beta1**update)).div_(root)
    return direction.add_(weight, alpha=decay).mul_(lr / (1 - lr * decay))
