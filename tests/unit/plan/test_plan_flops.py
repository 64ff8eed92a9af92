"""Counted arithmetic against torch's counter, and parameters against the module."""

from dataclasses import replace

import pytest
import torch
from flat_batches import flat_batch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from roberta_dist.config.load import conf_dir, load_yaml
from roberta_dist.config.model import (
    Attention,
    Fusion,
    KernelsConfig,
    ModelConfig,
    padded_vocabulary,
)
from roberta_dist.model.encoder import RobertaForPretraining
from roberta_dist.plan.flops import forward_flops, parameter_count, training_flops

pytestmark = pytest.mark.unit

VOCAB = 50_265
SIZES = ("tiny", "mini", "base", "large")
PADDED = KernelsConfig(Attention.sdpa, Fusion.eager)
VARLEN = KernelsConfig(Attention.blocked, Fusion.eager)


def sizes(name):
    return load_yaml(ModelConfig, conf_dir() / "model" / f"{name}.yaml")


def meta_batch(lengths, masked, pairs=False):
    """Shapes without data; the padding plan of unequal rows needs their values, so equal ones."""
    tokens = sum(lengths)
    labels = {"nsp_labels_R": torch.zeros(len(lengths), dtype=torch.long, device="meta")}
    return (labels if pairs else {}) | {
        "tokens_T": torch.zeros(tokens, dtype=torch.long, device="meta"),
        "positions_T": torch.zeros(tokens, dtype=torch.long, device="meta"),
        "cu_seqlens": torch.zeros(len(lengths) + 1, dtype=torch.int32, device="meta"),
        "max_seqlen": max(lengths),
        "masked_index_M": torch.zeros(masked, dtype=torch.long, device="meta"),
        "labels_M": torch.zeros(masked, dtype=torch.long, device="meta"),
    }


def counted(module, batch):
    """(forward, forward and backward) as torch counts them; math attention recomputes nothing."""
    with sdpa_kernel(SDPBackend.MATH):
        with torch.no_grad(), FlopCounterMode(display=False) as forward:
            module(**batch)
        with FlopCounterMode(display=False) as training:
            module(**batch).sum().backward()
    return forward.get_total_flops(), training.get_total_flops()


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize(("lengths", "masked"), [((512, 512), 154), ((128,) * 4, 77)])
def test_flops_are_torch_s_within_one_percent(name, lengths, masked):
    model = sizes(name)
    with torch.device("meta"):
        module = RobertaForPretraining(model, PADDED, VOCAB)
    forward, training = counted(module, meta_batch(lengths, masked))
    assert forward_flops(model, VOCAB, lengths, masked) == pytest.approx(forward, rel=0.01)
    assert training_flops(model, VOCAB, lengths, masked) == pytest.approx(training, rel=0.01)


@pytest.mark.parametrize("name", SIZES)
def test_flops_of_the_next_sentence_head_are_torch_s(name):
    """Exactly: it is too small a part of the whole to be held to 1 % of it."""
    model, lengths = sizes(name), (128,) * 4
    found = []
    for pairs in (False, True):
        with torch.device("meta"):
            module = RobertaForPretraining(model, PADDED, VOCAB, pairs)
        found.append(counted(module, meta_batch(lengths, 77, pairs)))
    for count, (without, with_pairs) in zip(
        (forward_flops, training_flops), zip(*found, strict=True), strict=True
    ):
        alone = count(model, VOCAB, lengths, 77, True, True) - count(model, VOCAB, lengths, 77)
        assert alone == with_pairs - without > 0


def test_padded_rows_cost_what_the_longest_costs():
    model = sizes("tiny")
    module = RobertaForPretraining(model, PADDED, 1000)
    lengths = (100, 30, 2)
    forward, training = counted(module, flat_batch(lengths, 20, 1000))
    assert forward_flops(model, 1000, lengths, 20) == pytest.approx(forward, rel=0.01)
    assert training_flops(model, 1000, lengths, 20) == pytest.approx(training, rel=0.01)
    spared = forward_flops(model, 1000, lengths, 20) - forward_flops(
        model, 1000, lengths, 20, padded=False
    )
    assert spared == 2 * 4 * 128 * (3 * 100**2 - 100**2 - 30**2 - 2**2)


@pytest.mark.parametrize(("name", "layers"), [("tiny", 2), ("base", 2), ("large", 1)])
def test_rows_without_padding_cost_their_own_length(name, layers):
    """Exactly; but the blocked kernel makes its scores twice, which is not counted as useful."""
    model = replace(sizes(name), num_layers=layers)
    module = RobertaForPretraining(model, VARLEN, VOCAB)
    lengths, masked = (100, 30, 2), 20
    forward, training = counted(module, flat_batch(lengths, masked, VOCAB))
    again = 2 * layers * model.hidden_size * sum(length**2 for length in lengths)
    assert forward_flops(model, VOCAB, lengths, masked, padded=False) == forward
    assert training_flops(model, VOCAB, lengths, masked, padded=False) == training - again
    assert again < 0.01 * training


def test_a_step_without_rows_costs_nothing():
    assert training_flops(sizes("base"), VOCAB, (), 0) == 0


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("name", SIZES)
def test_parameters_are_the_module_s(name, pairs):
    model = sizes(name)
    with torch.device("meta"):
        module = RobertaForPretraining(model, PADDED, VOCAB, pairs)
    found = sum(parameter.numel() for parameter in module.parameters())
    assert parameter_count(model, padded_vocabulary(VOCAB), pairs) == found


def test_roberta_s_published_sizes():
    assert parameter_count(sizes("base"), VOCAB) == 124_696_665
    assert parameter_count(sizes("large"), VOCAB) == 355_411_033
