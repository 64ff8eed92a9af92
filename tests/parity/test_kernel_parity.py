"""Every kernel against plain torch in float64, forward and backward, in the shapes of all formats.

With dropout too: the masks of `blocked` and of the fused pieces are worked out here from the same keys,
one score at a time; where torch draws its own, only their distribution can be held.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from kernel_reference import (
    BOUND,
    FORMATS,
    HEADS,
    SIZE,
    compare,
    hold_dropout,
    hold_model,
    losses,
    mask_of,
    off,
)

from roberta_dist.config.model import Attention, CrossEntropy, Fusion, KernelsConfig
from roberta_dist.model import blocked_attention as blocked
from roberta_dist.model.dropout import draw_keys
from roberta_dist.model.fused import Pieces, compiled_pieces


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", BOUND, ids=str)
@pytest.mark.parametrize("name", ["sdpa", "varlen", "blocked", "blocked compiled"])
def test_attention(name, dtype, form):
    compare(name, FORMATS[form], dtype)


@pytest.mark.parametrize("block", [1, 40 * 40, 3 * HEADS * 40 * 40])
@pytest.mark.parametrize("name", ["blocked", "blocked compiled"])
def test_dropped_attention_is_the_same_in_blocks_of_any_size(name, block, monkeypatch):
    monkeypatch.setattr(blocked, "BLOCK_SCORES", block)
    key = draw_keys(1, torch.device("cpu"))[0]
    compare(name, FORMATS["doc_sentences"], torch.float32, 0.3, key)


def test_scores_beyond_two_to_the_32_have_numbers_too():
    group = blocked._Group(0, 1, 4, HEADS, SIZE, first_score=(1 << 32) - 16)
    numbers = [int(first) for _, _, first in group.blocks()]
    assert numbers == [-16]
    assert [int(first) for _, _, first in replace(group, first_score=1 << 32).blocks()] == [0]


@pytest.mark.parametrize("name", ["sdpa", "varlen"])
def test_torch_s_dropout_is_unbiased_and_as_asked(name):
    hold_dropout(name, 200)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_fused_pieces_drop_what_the_hash_says(p):
    torch.manual_seed(3)
    residual, branch, above = torch.randn(3, 20, 32, dtype=torch.float64)
    weight, bias = torch.randn(2, 32, dtype=torch.float64)
    for key in (*draw_keys(2, torch.device("cpu")), None):
        kept = 1.0 if key is None else mask_of(branch.shape, key, p) / (1 - p)
        given = [x.clone().requires_grad_() for x in (residual, branch, weight, bias)]
        expected = F.layer_norm(given[0] + given[1] * kept, (32,), *given[2:], 1e-5)
        grads = torch.autograd.grad(expected, given, above)
        for pieces in (Pieces(), compiled_pieces()):
            own = [x.detach().float().requires_grad_() for x in given]
            found = pieces.residual_norm(*own, 1e-5, p, key)
            assert off(found, expected) < 1e-5
            for grad, other in zip(
                torch.autograd.grad(found, own, above.float()), grads, strict=True
            ):
                assert off(grad, other) < 1e-5
            norm = pieces.norm_dropout(own[1], *own[2:], 1e-5, p, key)
            other = F.layer_norm(branch, (32,), weight, bias, 1e-5) * kept
            assert off(norm, other) < 1e-5


WHOLE = [
    KernelsConfig(attention, fusion, cross_entropy, checkpointing)
    for attention, fusion, cross_entropy, checkpointing in (
        (Attention.sdpa, Fusion.eager, CrossEntropy.chunked, True),
        (Attention.sdpa, Fusion.compiled, CrossEntropy.torch, False),
        (Attention.varlen, Fusion.compiled, CrossEntropy.chunked, False),
        (Attention.blocked, Fusion.eager, CrossEntropy.torch, True),
        (Attention.blocked, Fusion.compiled, CrossEntropy.chunked, False),
        (Attention.blocked, Fusion.compiled, CrossEntropy.chunked, True),
    )
]
PLAIN = KernelsConfig(Attention.sdpa, Fusion.eager, CrossEntropy.chunked)
DROPPED = KernelsConfig(Attention.blocked, Fusion.eager, CrossEntropy.chunked)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", BOUND, ids=str)
def test_the_model_does_not_depend_on_its_kernels(dtype, form):
    hold_model(PLAIN, WHOLE, FORMATS[form], dtype)


def test_with_dropout_fusion_and_checkpointing_change_nothing():
    expected, grads = losses(DROPPED, FORMATS["doc_sentences"], torch.float32, 0.2)
    for kernels in (k for k in WHOLE if k.attention is Attention.blocked):
        loss, found = losses(kernels, FORMATS["doc_sentences"], torch.float32, 0.2)
        assert float((loss - expected).abs() / expected) < 1e-5
        for name, grad in found.items():
            torch.testing.assert_close(grad, grads[name], rtol=1e-3, atol=1e-5)
