"""A run folder becomes a picture, whatever state the run is in."""

from __future__ import annotations

import io
import json
import struct
from dataclasses import replace

import numpy as np
import pytest

from roberta_dist.config.load import to_yaml
from roberta_dist.config.roots import PretrainConfig, ReportConfig
from roberta_dist.errors import ConfigError, DataFault
from roberta_dist.report.layers import layer_updates
from roberta_dist.report.picture import STEP_PARTS, changes, draw, headline, smooth
from roberta_dist.report.read import read_run
from roberta_dist.report.run import report

pytestmark = pytest.mark.unit


def metrics(steps, evaluated=()):
    rows = []
    for step in steps:
        loss = None if step == 3 else 9.0 - 0.1 * step
        rows.append({"step": step, "loss": loss, "lr": 1e-3, "grad_norm": 1.5, "tokens_per_s": 2e3})
        if step in evaluated:
            rows.append({"step": step, "eval_loss": 8.0, "eval_masked_tokens": 10.0})
    return [json.dumps(row) for row in rows]


@pytest.fixture
def run_dir(tmp_path):
    """A run of ten steps with two evaluations, its corpus beside it."""
    corpus, run_dir = tmp_path / "corpus", tmp_path / "run"
    (corpus / "held_out").mkdir(parents=True)
    (corpus / "held_out" / "manifest.json").write_text('{"unigram_entropy": 6.25}')
    run_dir.mkdir()
    config = PretrainConfig()
    config = replace(
        config,
        data=replace(config.data, path=str(corpus)),
        schedule=replace(config.schedule, max_steps=20, warmup_steps=2),
    )
    (run_dir / "config.yaml").write_text(to_yaml(config))
    (run_dir / "environment.json").write_text('{"world_size": 2, "device": "cpu"}')
    lines = metrics(range(1, 11), evaluated=(5, 10))
    (run_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return run_dir


def size(path):
    """Width and height of a PNG."""
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", header[16:])


def test_the_picture_lies_in_the_run_folder_and_is_told(run_dir, capsys):
    assert report(ReportConfig(run_dir=str(run_dir))) == 0
    width, height = size(run_dir / "metrics.png")
    assert width > 1000 and height > 600
    told = capsys.readouterr().out
    assert str(run_dir / "metrics.png") in told
    assert "step 10 of 20" in told
    assert "held-out loss 8.000" in told and "unigram entropy 6.250" in told


def test_the_picture_may_lie_elsewhere(run_dir, tmp_path):
    output = tmp_path / "docs" / "picture.png"
    assert report(ReportConfig(run_dir=str(run_dir), output=str(output))) == 0
    assert size(output) and not (run_dir / "metrics.png").exists()


def test_columns_keep_steps_and_evaluations_apart(run_dir):
    run = read_run(run_dir)
    assert run.training["step"].tolist() == list(range(1, 11))
    assert np.flatnonzero(np.isnan(run.training["loss"])).tolist() == [2]
    assert run.held_out["step"].tolist() == [5, 10]
    assert run.held_out["eval_loss"].tolist() == [8.0, 8.0]
    assert run.unigram_entropy == 6.25


def test_a_run_that_just_started_on_another_machine_is_drawn(run_dir):
    (run_dir / "metrics.jsonl").write_text(metrics([1])[0] + "\n")
    (run_dir / "environment.json").unlink()
    (run_dir.parent / "corpus" / "held_out" / "manifest.json").unlink()
    assert headline(read_run(run_dir)) == "step 1 of 20"
    assert report(ReportConfig(run_dir=str(run_dir))) == 0


def test_a_line_that_is_being_written_is_left_out(run_dir):
    with open(run_dir / "metrics.jsonl", "a") as file:
        file.write('{"step": 11, "lo')
    assert read_run(run_dir).training["step"][-1] == 10


@pytest.mark.parametrize("damage", ['{"step": 2, "lo', '{"loss": 1.0}', "[]", "null"])
def test_a_damaged_line_is_named(run_dir, damage):
    lines = metrics(range(1, 4))
    lines[1] = damage
    (run_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataFault, match=r"metrics\.jsonl: line 2 is damaged"):
        read_run(run_dir)


@pytest.mark.parametrize("missing", ["metrics.jsonl", "config.yaml"])
def test_what_is_no_run_is_refused(run_dir, missing):
    (run_dir / missing).unlink()
    with pytest.raises(ConfigError, match=r"run_dir=.*is missing"):
        report(ReportConfig(run_dir=str(run_dir)))


def test_a_run_without_a_step_is_refused(run_dir):
    (run_dir / "metrics.jsonl").write_text("")
    with pytest.raises(ConfigError, match="no step is logged yet"):
        report(ReportConfig(run_dir=str(run_dir)))


def test_smoothing_is_the_mean_of_what_is_known():
    values = np.sin(np.arange(500) / 9)
    values[[0, 17, 499]] = np.nan
    wanted = [np.nanmean(values[max(0, i - 5) : i + 6]) for i in range(500)]
    np.testing.assert_allclose(smooth(values), wanted, rtol=1e-9, atol=1e-12)
    short = np.array([1.0, np.nan, 3.0])
    np.testing.assert_array_equal(smooth(short), short)


def test_the_time_of_a_step_is_shown_by_its_parts(run_dir):
    from matplotlib import colors, image

    def areas():
        """Pixels of each part's colour."""
        pixels = image.imread(io.BytesIO(draw(read_run(run_dir))))[..., :3]
        near = [np.abs(pixels - colors.to_rgb(c)).max(-1) < 0.01 for _, c in STEP_PARTS.values()]
        return np.array([part.sum() for part in near])

    without = areas()
    rows = [json.loads(line) for line in metrics(range(1, 11))]
    parts = {"compute_s": 4.0, "optimizer_s": 1.0, "data_wait_s": 2.0}
    (run_dir / "metrics.jsonl").write_text("\n".join(json.dumps(row | parts) for row in rows))
    compute, optimizer, data_wait = areas() - without
    assert compute / optimizer == pytest.approx(4, rel=0.1)
    assert data_wait / optimizer == pytest.approx(2, rel=0.1)


def test_pairs_mixtures_and_schedules_are_drawn_where_a_run_has_them(run_dir):
    plain = draw(read_run(run_dir))
    assert "next sentence" not in headline(read_run(run_dir))
    rows = [json.loads(line) for line in metrics(range(1, 11), evaluated=(5, 10))]
    for row in rows:
        if "loss" in row:
            phase = {"sequence_length": 128 if row["step"] < 6 else 512}
            row |= phase | {"nsp_loss": 0.6, "nsp_accuracy": 0.75, "quarantined_packs": 2}
            row["global_batch_size"] = 8 * row["step"]
        else:
            row |= {"eval_loss/wiki": 7.0, "eval_loss/law": 9.0, "eval_nsp_accuracy": 0.7}
    (run_dir / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = read_run(run_dir)
    assert "next sentence 75.0% right · damaged packs left out: 2" in headline(run)
    assert run.held_out["eval_loss/wiki"].tolist() == [7.0, 7.0]
    assert draw(run) != plain


def test_updates_by_layer_are_drawn_where_a_run_has_measured_them(run_dir):
    plain = draw(read_run(run_dir))
    rows = [json.loads(line) for line in metrics(range(1, 11))]
    for row in rows[4::5]:
        row |= {f"layer_update_ratio/{layer}": 1e-3 * row["step"]
                for layer in ("embeddings", "layers.0", "layers.10", "layers.2", "head")}  # fmt: skip
    (run_dir / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = read_run(run_dir)
    measured = layer_updates(run)
    assert list(measured) == ["embeddings", "head", "layers.0", "layers.2", "layers.10"]
    for steps, values in measured.values():
        assert (steps.tolist(), values.tolist()) == ([5, 10], [5e-3, 1e-2])
    assert draw(run) != plain


def test_a_change_is_where_a_value_differs_from_the_last_known_one():
    assert changes(np.array([8.0, 8.0, np.nan, 8.0, 16.0, np.nan, 32.0, 32.0])) == [4, 6]
    assert changes(np.empty(0)) == changes(np.array([5.0])) == []
