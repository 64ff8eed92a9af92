"""What `tools/bench_step.py` compares: the same masked rows, and products that are our model's."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from roberta_dist.plan.flops import training_flops

pytestmark = pytest.mark.unit
TOOLS = Path(__file__).resolve().parents[3] / "tools"


@pytest.fixture
def arms(monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module("step_arms")


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module("bench_step")


def job(arms, **values):
    defaults = {"size": "tiny", "seq": 128, "rows": 3, "device": "cpu", "precision": "fp32"}
    return arms.Job(**(defaults | values), threads=1, hf_compile=False)


@pytest.mark.parametrize("size", ["tiny", "mini", "base", "large"])
@pytest.mark.parametrize(("seq", "rows"), [(128, 16), (512, 4)])
def test_the_ceiling_s_products_are_the_model_s(arms, size, seq, rows):
    model, masked = job(arms, size=size).model, 300
    products = arms.model_products(
        model, arms.VOCABULARY, rows, seq, masked, torch.device("meta"), torch.float32
    )
    expected = training_flops(model, arms.VOCABULARY, [seq] * rows, masked)
    assert sum(product.flops for product in products) == expected


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_ceiling_computes_what_it_counts(arms, precision):
    small = job(arms, precision=precision)
    step = arms.ceiling(small)
    with warnings.catch_warnings(), FlopCounterMode(display=False) as counted:
        warnings.simplefilter("error")  # torch warns where a buffer has another shape
        step()
    masked = len(small.batch().masked_index_M)
    expected = training_flops(small.model, arms.VOCABULARY, [128] * 3, masked)
    assert counted.get_total_flops() == expected


def test_all_models_see_the_same_masked_rows(arms):
    batch = job(arms).batch()
    inputs = arms.hf_inputs(batch, torch.device("cpu"))
    labels = inputs["labels"].flatten()
    predicted = labels != importlib.import_module("hf_trainer").IGNORED
    assert inputs["input_ids"].shape == (3, 128)
    assert inputs["input_ids"].flatten().tolist() == batch.tokens_T.tolist()
    assert predicted.nonzero().flatten().tolist() == batch.masked_index_M.tolist()
    assert labels[predicted].tolist() == batch.labels_M.tolist()
    assert 0.1 < predicted.float().mean() < 0.2
    assert (inputs["input_ids"] == arms.SPECIAL.mask).any()


def test_only_known_cards_have_a_datasheet(bench):
    assert bench.datasheet_peak("cuda NVIDIA H100 80GB HBM3", "bf16")[1] == 989.5e12
    assert bench.datasheet_peak("cuda NVIDIA H100 PCIe", "bf16")[1] == 756.5e12
    assert bench.datasheet_peak("cuda NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16") is None
    assert bench.datasheet_peak("cuda NVIDIA H100 80GB HBM3", "fp32") is None
    assert bench.datasheet_peak("cpu x86_64", "bf16") is None
