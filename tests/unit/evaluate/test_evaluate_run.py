"""What `evaluate` refuses before it reads anything."""

from __future__ import annotations

import pytest

from roberta_dist.config.data import DataConfig, MaskingConfig
from roberta_dist.config.model import ModelConfig
from roberta_dist.config.roots import EvaluateVerbConfig
from roberta_dist.errors import ConfigError
from roberta_dist.evaluate import run

pytestmark = pytest.mark.unit


def test_rows_longer_than_the_model_are_refused(monkeypatch, tmp_path):
    data = DataConfig(path=str(tmp_path), sequence_length=128)
    subject = run.Subject("step 6", {}, ModelConfig(max_positions=64), data, MaskingConfig())
    monkeypatch.setattr(run, "_from_run", lambda config, run_dir: subject)
    with pytest.raises(ConfigError, match="sequence_length=128: step 6 has 64 positions"):
        run.evaluate(EvaluateVerbConfig(run_dir="run"))


def test_a_corpus_without_held_out_text_is_told_apart_from_none(tmp_path):
    data = DataConfig(path=str(tmp_path))
    with pytest.raises(ConfigError) as refused:
        run.open_held_out(data, MaskingConfig(), run.EvaluateVerbConfig(run_dir="run").evaluate)
    assert "held_out: no manifest.json" in refused.value.problem
    assert "evaluate.every_steps=0" in refused.value.remedy
