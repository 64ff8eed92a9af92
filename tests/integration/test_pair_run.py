"""A LAMB run on pairs with a batch-size ramp and two schedules: killed, evaluated, exported."""

from __future__ import annotations

import subprocess
import sys

import pytest
from run_support import (
    deterministic,
    finish,
    metrics,
    prepare_corpus,
    start,
    wait_for_step,
    write_config,
)

pytestmark = pytest.mark.world
RAMP = [
    "data.format=segment_pair", "train.global_batch_size=8", "train.micro_batch_size=2",
    "data.phases=[{from_step: 6, global_batch_size: 24, ramp_steps: 12}]",
    "schedule.max_steps=24", "checkpoint.every_steps=8", "checkpoint.keep_last=9",
    "evaluate.every_steps=12", "optim.name=lamb", "optim.lr=1e-2", "schedule.decay=polynomial",
    "schedule.power=0.5", "schedule.phases=[{from_step: 10, lr: 6e-3, warmup_fraction: 0.25}]",
]  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return prepare_corpus(tmp_path_factory.mktemp("corpus") / "small")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, corpus):
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    finish(write_config(run_dir, corpus, *RAMP, "engine.stage=2"), 2)
    return run_dir


def test_every_line_has_the_figures_of_pairs(whole):
    lines = metrics(whole)
    training = [line for line in lines if "loss" in line]
    evaluated = [line for line in lines if "eval_loss" in line]
    assert [line["step"] for line in training] == list(range(1, 25))
    for line in training:
        assert 0.1 < line["nsp_loss"] < 2.0 and 0.0 <= line["nsp_accuracy"] <= 1.0
    rows = [0, *(line["next_row"] for line in training)]
    assert rows[1] - rows[0] < rows[-1] - rows[-2]  # the batch did grow
    assert [line["step"] for line in evaluated] == [12, 24]
    drop, top = training[10]["lr"], training[13]["lr"]  # the second schedule warms up again
    assert drop < training[9]["lr"] and drop < top
    assert all(line["eval_nsp_loss"] > 0 and "eval_nsp_accuracy" in line for line in evaluated)


def test_killed_on_the_ramp_and_started_again_nothing_differs(tmp_path, corpus, whole):
    config = write_config(tmp_path / "killed", corpus, *RAMP, "engine.stage=2")
    ranks = start(config, 2)
    wait_for_step(tmp_path / "killed", ranks, 11)
    ranks.signal(9)
    ranks.wait()
    finish(config, 2, "attempt_001")
    assert deterministic(tmp_path / "killed") == deterministic(whole)


def test_what_the_run_says_is_what_evaluate_and_export_find(whole):
    def roberta_dist(*arguments):
        command = [sys.executable, "-m", "roberta_dist.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)

    last = metrics(whole)[-1]
    told = roberta_dist("evaluate", f"run_dir={whole}", "evaluate.max_rows=32")
    assert told.returncode == 0, told.stdout + told.stderr
    assert f"held-out loss             {last['eval_loss']:.4f}" in told.stdout
    assert f"held-out next sentence    {last['eval_nsp_loss']:.4f}" in told.stdout
    exported = roberta_dist("export", f"run_dir={whole}")
    assert exported.returncode == 0, exported.stdout + exported.stderr
    assert exported.stderr.count("no next-sentence head") == 1
    assert "| next-sentence head |" in (whole / "export" / "README.md").read_text()
