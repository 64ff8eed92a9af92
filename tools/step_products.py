"""The matrix products of one training step, and nothing else: the ceiling of `bench_step.py`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from roberta_dist.config.model import ModelConfig, padded_vocabulary


class Product(NamedTuple):
    """`out = left @ right`, of two matrices or of two stacks of them."""

    left: Tensor
    right: Tensor
    out: Tensor

    @property
    def flops(self) -> int:
        """Two a multiply-add."""
        return 2 * self.left.numel() * self.right.shape[-1]


Pass = list[Product]


def linear_products(
    inputs: int, width_in: int, width_out: int, device: torch.device, dtype: torch.dtype
) -> tuple[Pass, Pass]:
    """x Wᵀ forward; dy W and dyᵀ x backward, with y for dy."""
    x = torch.randn(inputs, width_in, device=device, dtype=dtype)
    weight = torch.randn(width_out, width_in, device=device, dtype=dtype)
    y = x.new_empty(inputs, width_out)
    backward = [
        Product(y, weight, torch.empty_like(x)),
        Product(y.T, x, torch.empty_like(weight)),
    ]
    return [Product(x, weight.T, y)], backward


def attention_products(
    stack: int, length: int, head: int, device: torch.device, dtype: torch.dtype
) -> tuple[Pass, Pass]:
    """Q Kᵀ and P V forward; dP, dV, dQ and dK backward, with P for dP and O for dO."""
    q, k, v = torch.randn(3, stack, length, head, device=device, dtype=dtype)
    p, o = q.new_empty(stack, length, length), torch.empty_like(q)
    forward = [Product(q, k.mT, p), Product(p, v, o)]
    backward = [
        Product(o, v.mT, torch.empty_like(p)),
        Product(p.mT, o, torch.empty_like(v)),
        Product(p, k, torch.empty_like(q)),
        Product(p.mT, q, torch.empty_like(k)),
    ]
    return forward, backward


def model_products(
    model: ModelConfig,
    vocab_size: int,
    rows: int,
    length: int,
    masked: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Pass:
    """The matrix products of one forward and backward pass of our model, in a possible order.

    All layers share one set of buffers.
    """
    width, tokens = model.hidden_size, rows * length
    layer = [
        linear_products(tokens, width, 3 * width, device, dtype),
        attention_products(rows * model.num_heads, length, width // model.num_heads, device, dtype),
        linear_products(tokens, width, width, device, dtype),
        linear_products(tokens, width, model.ffn_size, device, dtype),
        linear_products(tokens, model.ffn_size, width, device, dtype),
    ]
    head = [
        linear_products(masked, width, width, device, dtype),
        linear_products(masked, width, padded_vocabulary(vocab_size), device, dtype),
    ]
    parts = layer * model.num_layers + head
    forward = [product for part, _ in parts for product in part]
    return forward + [product for _, part in reversed(parts) for product in part]
