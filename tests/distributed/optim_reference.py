"""AdamW and LAMB in one process, tensor by tensor, written from the papers; any precision.

Loshchilov and Hutter 2019, Algorithm 2; You et al. 2020, Algorithm 2, with the choices of NVIDIA's
apex that `roberta_dist.optim.lamb` states. Nothing here is shared with the code under test.
"""

from __future__ import annotations

import math

import torch


def tensors_of(name, weight):
    """The weight, or the three of a fused query-key-value projection."""
    return list(weight.chunk(3)) if ".qkv." in name else [weight]


class Reference:
    """The update rule over named parameters, with plain loops and no state beyond the moments."""

    def __init__(self, module, name, beta1=0.9, beta2=0.98, eps=1e-6, weight_decay=0.01,
                 trust_clip=None, nvlamb=False, bias_correction=True, prenormalize=False):  # fmt: skip
        self.parameters = dict(module.named_parameters())
        self.name, self.betas, self.eps, self.decay = name, (beta1, beta2), eps, weight_decay
        self.clip, self.nvlamb, self.correct = trust_clip, nvlamb, bias_correction
        self.prenormalize = prenormalize
        self.moments = {
            key: (torch.zeros_like(p), torch.zeros_like(p)) for key, p in self.parameters.items()
        }
        self.t = 0

    @torch.no_grad()
    def step(self, lr):
        self.t += 1
        beta1, beta2 = self.betas
        correct1, correct2 = (1 - beta1**self.t, 1 - beta2**self.t) if self.correct else (1.0, 1.0)
        norm = math.sqrt(sum(float(p.grad.double().pow(2).sum()) for p in self.parameters.values()))
        for key, parameter in self.parameters.items():
            gradient = parameter.grad / norm if self.prenormalize else parameter.grad
            m, v = self.moments[key]
            m.mul_(beta1).add_(gradient, alpha=1 - beta1)
            v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            decay = self.decay if parameter.ndim > 1 else 0.0
            update = (m / correct1) / ((v / correct2).sqrt() + self.eps) + decay * parameter
            adapted = self.name == "lamb" and (decay > 0 or self.nvlamb)
            parts = zip(tensors_of(key, parameter), tensors_of(key, update), strict=True)
            for weight, step in parts:
                weight -= lr * (self._ratio(weight, step) if adapted else 1.0) * step

    def _ratio(self, weight, step):
        size, length = float(weight.double().norm()), float(step.double().norm())
        if not (size > 0 and length > 0):
            return 1.0
        ratio = size / length
        return min(max(ratio, self.clip[0]), self.clip[1]) if self.clip else ratio


def trace(model, rule, batches, lr, device="cpu"):
    """Losses of one process that sees each whole batch at once; `model` is moved."""
    from roberta_dist.stream.tensors import to_tensors

    losses = []
    for batch in batches:
        loss = model(**to_tensors(batch, torch.device(device))) / len(batch.masked_index_M)
        model.zero_grad()
        loss.backward()
        rule.step(lr)
        losses.append(float(loss.detach()))
    return losses
