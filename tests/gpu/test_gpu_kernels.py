"""Kernels on a GPU against plain torch in float64, and against a CPU where the dropout is ours."""

import sys
from pathlib import Path

import pytest
import torch
from flat_batches import flat_batch

from roberta_dist.config.model import Attention, CrossEntropy, Fusion, KernelsConfig
from roberta_dist.model.dropout import draw_keys
from roberta_dist.model.encoder import RobertaForPretraining
from roberta_dist.model.fused import Pieces, compiled_pieces
from roberta_dist.model.init import init_weights
from roberta_dist.model.kernels import has_linear_cross_entropy

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))
from kernel_reference import (
    BOUND,
    FORMATS,
    MODEL,
    VOCAB,
    compare,
    hold_dropout,
    hold_model,
)
from test_recompilation import WARM_UP, graphs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]
CUDA = torch.device("cuda")
PLAIN = KernelsConfig(Attention.sdpa, Fusion.eager, CrossEntropy.chunked)
TORCH_OR_OURS = CrossEntropy.torch if has_linear_cross_entropy() else CrossEntropy.auto
CHOICES = [
    KernelsConfig(),
    KernelsConfig(Attention.sdpa, Fusion.compiled, TORCH_OR_OURS),
    KernelsConfig(Attention.varlen, Fusion.compiled, activation_checkpointing=True),
]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", BOUND, ids=str)
@pytest.mark.parametrize("name", ["sdpa", "varlen"])
def test_attention(name, dtype, form):
    compare(name, FORMATS[form], dtype, device=CUDA)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", BOUND, ids=str)
def test_the_model_is_the_cpu_s(dtype, form):
    hold_model(PLAIN, CHOICES, FORMATS[form], dtype, CUDA)


@pytest.mark.parametrize("dtype", BOUND, ids=str)
@pytest.mark.parametrize("name", ["sdpa", "varlen"])
def test_torch_s_dropout_is_unbiased_and_as_asked(name, dtype):
    hold_dropout(name, 200, dtype, CUDA)


def test_nothing_is_compiled_after_the_first_steps():
    before, after = graphs(50, WARM_UP, True, "cuda")
    assert after == before
    assert after["breaks"] == 0


def test_fused_dropout_is_the_cpu_s():
    torch.manual_seed(3)
    residual, branch = torch.randn(2, 50, 32)
    weight, bias = torch.randn(2, 32)
    key = draw_keys(1, torch.device("cpu"))[0]
    given = (residual, branch, weight, bias)
    expected = Pieces().residual_norm(*given, 1e-5, 0.3, key)
    found = compiled_pieces().residual_norm(*(x.cuda() for x in given), 1e-5, 0.3, key.cuda())
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5)


def test_no_micro_step_waits_for_the_device():
    module = RobertaForPretraining(MODEL, KernelsConfig(), VOCAB)
    init_weights(module, 1)
    module.to(CUDA, torch.bfloat16).train()
    batch = flat_batch(FORMATS["full_sentences"], 30, VOCAB)
    batch = {k: v if isinstance(v, int) else v.to(CUDA) for k, v in batch.items()}
    for mode in ("default", "error"):  # the first time compiles
        torch.cuda.set_sync_debug_mode(mode)
        try:
            module(**batch).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
