"""AdamW and LAMB in one process, tensor by tensor, written from the papers; any precision.

Loshchilov and Hutter 2019, Algorithm 2; You et al. 2020, Algorithm 2, with the choices of NVIDIA's
apex that `roberta_dist.optim.lamb` states. Nothing here is shared with the code under test.
"""

from __future__ import annotations

import copy
import math

import torch

from roberta_dist.stream.tensors import to_tensors

CPU = torch.device("cpu")


def tensors_of(name, weight, packed=False):
    """The weight, or the three of a fused query-key-value projection unless left `packed`."""
    return list(weight.chunk(3)) if ".qkv." in name and not packed else [weight]


class Reference:
    """The update rule over named parameters, with plain loops and no state beyond the moments."""

    def __init__(self, module, name, beta1=0.9, beta2=0.98, eps=1e-6, weight_decay=0.01,
                 trust_clip=None, nvlamb=False, bias_correction=True, prenormalize=False,
                 packed=False):  # fmt: skip
        self.parameters = dict(module.named_parameters())
        self.name, self.betas, self.eps, self.decay = name, (beta1, beta2), eps, weight_decay
        self.clip, self.nvlamb, self.correct = trust_clip, nvlamb, bias_correction
        self.prenormalize, self.packed = prenormalize, packed
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
            tensors = tensors_of(key, parameter, self.packed), tensors_of(key, update, self.packed)
            for weight, step in zip(*tensors, strict=True):
                weight -= lr * (self._ratio(weight, step) if adapted else 1.0) * step

    def _ratio(self, weight, step):
        size, length = float(weight.double().norm()), float(step.double().norm())
        if not (size > 0 and length > 0):
            return 1.0
        ratio = size / length
        return min(max(ratio, self.clip[0]), self.clip[1]) if self.clip else ratio


def trace(model, rule, batches, lr):
    """Losses of one process that sees each whole batch at once; `model` is moved."""
    losses = []
    for batch in batches:
        loss = model(**to_tensors(batch, CPU)) / len(batch.masked_index_M)
        model.zero_grad()
        loss.backward()
        rule.step(lr)
        losses.append(float(loss.detach()))
    return losses


def low_trace(module, make_rule, steps, lr, ranks, dtype=torch.bfloat16, scale=1.0):
    """Losses with bf16 (or fp16) weights and activations, fp32 master weights and fp32 gradient sums.

    `steps` holds each step's micro-batches of all ranks; scaled as `ranks` ranks scale them, since
    it rounds what is scaled another way differently.
    """
    module = module.to(dtype)
    master = copy.deepcopy(module).float()  # DeepSpeed takes its fp32 weights from the rounded ones
    rule, losses = make_rule(master), []
    pairs = list(zip(master.parameters(), module.parameters(), strict=True))
    for micro_batches in steps:
        masked = sum(len(batch.masked_index_M) for batch in micro_batches)
        for weight, rounded in pairs:
            rounded.data.copy_(weight.data)
            weight.grad = torch.zeros_like(weight)
        total = 0.0
        for batch in micro_batches:
            module.zero_grad()
            loss = module(**to_tensors(batch, CPU))
            (loss * (ranks / masked) * scale).backward()
            for weight, rounded in pairs:
                weight.grad += rounded.grad.float() / ranks / scale
            total += float(loss.detach().double())
        rule.step(lr)
        losses.append(total / masked)
    return losses
