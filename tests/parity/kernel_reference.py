"""Plain torch in float64, and the mask of every dropout worked out one score at a time."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from flat_batches import flat_batch

from roberta_dist.config.model import ModelConfig
from roberta_dist.model import blocked_attention as blocked
from roberta_dist.model.attention import padded_attention, padding_plan, varlen_attention
from roberta_dist.model.encoder import RobertaForPretraining
from roberta_dist.model.fused import Pieces, compiled_pieces
from roberta_dist.model.init import init_weights

HEADS, SIZE = 2, 8
WIDTH = HEADS * SIZE
FORMATS = {
    "blocks": (40,) * 6,
    "full_sentences": (40, 40, 37, 40, 40, 29),
    "doc_sentences": (40, 3, 17, 2, 2, 31, 40, 40),
    "segment_pair": (38, 40, 22, 40),
    "sentence_pair": (9, 9, 30, 14, 2),
}
MODEL = ModelConfig(num_layers=2, hidden_size=32, ffn_size=64, num_heads=2, max_positions=64)
VOCAB = 133
BOUND = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


CPU = torch.device("cpu")


def starts_of(lengths):
    return torch.tensor([0, *lengths]).cumsum(0)


def hash_of(counter, key):
    """The mask's hash, on Python integers."""
    low = (1 << 32) - 1
    first, second = (int(word) & low for word in key)
    word = (counter ^ first) & low
    word = (word ^ (word >> 16)) * 0x7FEB352D & low
    word ^= second
    word = (word ^ (word >> 15)) * 0x846CA68B & low
    return (word ^ (word >> 16)) & 0xFFFFFF


def mask_of(shape, key, p, first=0):
    numbers = range(first, first + math.prod(shape))
    return torch.tensor([hash_of(n, key) >= round(p * 2**24) for n in numbers]).view(shape)


def reference_attention(qkv, lengths, p=0.0, key=None):
    """Row by row and head by head, from the definition."""
    rows, first, count = [], 0, 0
    for length in lengths:
        own = qkv[first : first + length].view(length, 3, HEADS, SIZE).permute(1, 2, 0, 3)
        weights = (own[0] @ own[1].mT / math.sqrt(SIZE)).softmax(-1)
        if key is not None:
            weights = weights * mask_of(weights.shape, key, p, count) / (1 - p)
        rows.append((weights @ own[2]).transpose(0, 1).reshape(length, WIDTH))
        first, count = first + length, count + HEADS * length * length
    return torch.cat(rows)


def run_kernel(name, qkv, lengths, p=0.0, key=None):
    starts, longest = starts_of(lengths).to(qkv.device), max(lengths)
    if name == "varlen":
        return varlen_attention(qkv, starts.int(), longest, HEADS, p)
    if name == "sdpa":
        plan = padding_plan(starts.int(), len(qkv), longest)
        return padded_attention(qkv, *plan, longest, HEADS, p)
    pieces = compiled_pieces() if name == "blocked compiled" else Pieces()
    return blocked.blocked_attention(qkv, starts.tolist(), HEADS, p, key, pieces)


def off(found, expected):
    """Largest difference, relative to the largest value."""
    return float(
        (found.detach().cpu().double() - expected.detach()).abs().max() / expected.abs().max()
    )


def compare(name, lengths, dtype, p=0.0, key=None, device=CPU):
    """Hold one attention kernel to the definition, forward and backward."""
    generator = torch.Generator().manual_seed(1)
    exact = torch.randn(sum(lengths), 3 * WIDTH, generator=generator, dtype=torch.float64)
    above = torch.randn(sum(lengths), WIDTH, generator=generator, dtype=torch.float64)
    qkv = exact.to(device, dtype).requires_grad_()
    # What bf16 rounds off the input is no error.
    exact = qkv.detach().cpu().double().requires_grad_()
    expected = reference_attention(exact, lengths, p, key)
    found = run_kernel(name, qkv, lengths, p, key)
    assert found.dtype == dtype
    assert off(found, expected) < BOUND[dtype]
    grads = [torch.autograd.grad(y, x, above.to(y)) for y, x in ((found, qkv), (expected, exact))]
    assert off(grads[0][0], grads[1][0]) < BOUND[dtype]


def hold_dropout(name, draws, dtype=torch.float32, device=CPU):
    """Values of one make each output Σ weights / (1 − p): its mean is 1, its variance p/(1−p) Σ w²."""
    lengths, p = FORMATS["doc_sentences"], 0.25
    torch.manual_seed(2)
    qkv = torch.randn(sum(lengths), 3 * WIDTH).to(device, dtype)
    qkv[:, 2 * WIDTH :] = 1.0
    kept = [run_kernel(name, qkv, lengths, p)[:, ::SIZE].float().cpu() for _ in range(draws)]
    outputs = torch.stack(kept)
    assert abs(outputs.mean().item() - 1.0) < 0.01
    squares = []
    for start, length in zip(starts_of(lengths).tolist(), lengths, strict=False):
        own = qkv[start : start + length].float().cpu()
        own = own.view(length, 3, HEADS, SIZE).permute(1, 2, 0, 3)
        weights = (own[0] @ own[1].mT / math.sqrt(SIZE)).softmax(-1)
        squares.append(weights.square().sum(-1).mT)
    expected = p / (1 - p) * torch.cat(squares)
    assert abs((outputs.var(0) / expected).mean().item() - 1.0) < 0.05


def losses(kernels, lengths, dtype, dropout, device=CPU):
    """Loss and gradients by name of one batch, float64 on the CPU."""
    model = replace(MODEL, dropout=dropout, attention_dropout=dropout)
    module = RobertaForPretraining(model, kernels, VOCAB)
    init_weights(module, 1)
    module.to(device, dtype).train()
    batch = flat_batch(lengths, max(1, sum(lengths) // 6), VOCAB)
    torch.manual_seed(5)
    loss = module(**{k: v if isinstance(v, int) else v.to(device) for k, v in batch.items()})
    loss.backward()
    return loss.detach().cpu().double(), {
        name: p.grad.cpu().double() for name, p in module.named_parameters()
    }


def hold_model(plain, choices, lengths, dtype, device=CPU):
    """Loss and every gradient under each of `choices` are those of `plain` in fp32 on the CPU."""
    expected, grads = losses(plain, lengths, torch.float32, 0.0)
    largest = max(float(grad.norm()) for grad in grads.values())
    for kernels in choices:
        loss, found = losses(kernels, lengths, dtype, 0.0, device)
        assert float((loss - expected).abs() / expected) < BOUND[dtype], kernels
        for name, grad in found.items():  # a key's bias has no gradient but rounding
            assert float((grad - grads[name]).norm()) < 2 * BOUND[dtype] * largest, (kernels, name)
