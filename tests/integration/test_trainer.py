"""A run of ours and Hugging Face's Trainer as tools/hf_trainer.py starts it: the same loss at every step.

Without dropout nothing is left to differ but rounding, so that equal traces prove that rows, masks,
initial weights, learning rates, decay groups, betas and clipping are the same: what the comparison of
curves and wall time (tools/compare_trainer.py) stands on.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_support import finish, metrics, prepare_corpus, write_config

from roberta_dist.config.load import compose
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"
STEPS = 10
SETTINGS = [
    "model.dropout=0", "model.attention_dropout=0", f"schedule.max_steps={STEPS}",
    "train.micro_batch_size=16", "optim.lr=1e-2", "optim.weight_decay=0.3", "optim.max_grad_norm=0.5",
    "evaluate.every_steps=0", "checkpoint.every_steps=1000",
]  # fmt: skip
"""Rates, decay and clipping so strong that ten steps show each of them."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    sources = (path.read_text() for path in sorted((ROOT / "roberta_dist").rglob("*.py")))
    (folder / "sources.txt").write_text("\n\n".join(sources))
    return prepare_corpus(
        folder / "prepared", "corpus=text", f"corpus.paths=[{folder / 'sources.txt'}]"
    )


@pytest.fixture
def tools_path(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))


@pytest.mark.world
@pytest.mark.parametrize("data_format", ["full_sentences", "doc_sentences"])
def test_the_same_loss_at_every_step(corpus, tmp_path, data_format):
    config = write_config(tmp_path, corpus, *SETTINGS, f"data.format={data_format}")
    finish(config, 1)
    command = [sys.executable, TOOLS / "hf_trainer.py", tmp_path, tmp_path / "hf.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in metrics(tmp_path) if "loss" in line]
    ours = np.array([line["loss"] for line in lines])
    theirs = np.array(json.loads((tmp_path / "hf.json").read_text())["loss"])
    assert ours.shape == theirs.shape == (STEPS,)
    assert max(line["grad_norm"] for line in lines) > 0.5, "nothing was clipped"
    np.testing.assert_allclose(theirs, ours, rtol=2e-5)


@pytest.mark.unit
@pytest.mark.parametrize(
    "override",
    [
        "optim.name=lamb",
        "optim.decay_bias_and_norm=true",
        "engine.precision=bf16",
        "data.format=sentence_pair",
        "data.phases=[{from_step: 5, sequence_length: 64}]",
    ],
)
def test_a_run_that_trainer_would_train_otherwise_is_refused(tools_path, override):
    from hf_trainer import check

    check(compose("pretrain", PretrainConfig))
    with pytest.raises(ConfigError, match="Trainer would train with"):
        check(compose("pretrain", PretrainConfig, [override]))


@pytest.mark.unit
def test_curves_overlap_within_the_pooled_range_of_seeds(tools_path):
    from compare_trainer import compare

    seeds = np.array([[0.0], [0.2], [0.1]])
    ours = np.full((3, 100), 5.0) + seeds
    near = compare(ours, 5.15 + 4 * (seeds - 0.1) + np.zeros((3, 100)))
    assert near["spread"] == pytest.approx(0.2) and near["difference"] == pytest.approx(0.05)
    assert near["overlap"] and len(near["spreads"]) == 2
    assert near["noise"] == pytest.approx(0.2)
    ours_lucky = ours.copy()
    ours_lucky[:, :50] = ours_lucky[:, :50].mean(axis=0)  # three seeds that happen to agree
    lucky = compare(ours_lucky, ours + 0.05)
    assert lucky["spreads"] == pytest.approx([0.0, 0.2])
    assert lucky["noise"] == pytest.approx(0.1) and lucky["overlap"]
    far = ours + 0.15
    far[:, :50] += 0.1  # apart in the middle of the run, not at its end
    apart = compare(ours, far)
    assert apart["difference"] == pytest.approx(0.15) and not apart["overlap"]
    assert apart["differences"][0] == pytest.approx(0.25) == apart["largest_difference"]


@pytest.mark.unit
def test_the_comparison_is_drawn(tools_path):
    from compare_trainer import compare
    from plot_trainer import draw

    curves = 5.0 + np.random.default_rng(1).random((2, 2, 60))
    result = {"ours": curves[0], "theirs": curves[1], "ours_s": 1.0, "hf_s": 2.0, "size": "small"}
    with Image.open(io.BytesIO(draw(result | compare(*curves)))) as picture:
        assert picture.format == "PNG" and picture.width > 1000
