"""Which steps are traced, and what is left where it goes wrong. A real run is in test_training.py."""

from __future__ import annotations

import logging

import pytest
import torch

from roberta_dist.config.train import TrainConfig
from roberta_dist.train import profile
from roberta_dist.train.profile import StepProfiler

pytestmark = pytest.mark.unit
CPU = torch.device("cpu")


def run(folder, first, last, steps=(2, 4), enabled=True):
    """Steps `first` to `last` of a run; returns those that were marked."""
    marked = []
    config = TrainConfig(profile=list(steps))
    with StepProfiler(config, folder, CPU, enabled) as profiler:
        for number in range(first, last + 1):
            with profiler.step(number):
                torch.ones(2) + number
                marked += [number] if profiler.columns else []
            profiler.done(number)
    return marked


def left(folder):
    return sorted(path.name for path in folder.glob("*")) + sorted(
        path.name for path in folder.glob(".*")
    )


def test_a_second_attempt_leaves_its_own_trace(tmp_path):
    assert run(tmp_path, 1, 5) == [2, 3]
    before = (tmp_path / "steps_2-3" / "trace.json").read_bytes()
    assert run(tmp_path, 1, 5) == [2, 3]
    assert left(tmp_path) == ["steps_2-3", "steps_2-3.1"]
    assert (tmp_path / "steps_2-3" / "trace.json").read_bytes() == before


def test_a_resumed_run_traces_the_steps_that_are_left(tmp_path):
    assert run(tmp_path, 3, 5) == [3]
    assert left(tmp_path) == ["steps_3-3"]
    assert run(tmp_path, 4, 5) == []
    assert left(tmp_path) == ["steps_3-3"]


@pytest.mark.parametrize(("steps", "enabled"), [((), True), ((2, 4), False)])
def test_no_profiler_is_made_where_none_is_asked_for(tmp_path, monkeypatch, steps, enabled):
    monkeypatch.setattr(profile, "profile", None)
    assert run(tmp_path / "none", 1, 5, steps, enabled) == []
    assert not (tmp_path / "none").exists()


def test_a_run_that_stops_in_between_leaves_no_half_trace(tmp_path, caplog):
    assert run(tmp_path, 1, 2) == [2]
    assert left(tmp_path) == []
    assert "no trace" in caplog.text
    with (
        pytest.raises(ZeroDivisionError),
        StepProfiler(TrainConfig(profile=[1, 3]), tmp_path, CPU, True) as profiler,
        profiler.step(1),
    ):
        1 / 0  # noqa: B018
    assert left(tmp_path) == []
    assert run(tmp_path, 1, 5) == [2, 3]  # nothing is left running


def test_a_trace_that_cannot_be_written_is_a_warning(tmp_path, caplog, monkeypatch):
    def cut_short(self, path):
        with open(path, "w") as file:
            file.write('{"traceEvents": [')

    monkeypatch.setattr(profile.profile, "export_chrome_trace", cut_short)
    with caplog.at_level(logging.WARNING):
        assert run(tmp_path, 1, 5) == [2, 3]
    assert "profile of steps 2 to 3 is not written" in caplog.text
    assert "trace.json: cut short" in caplog.text
    assert left(tmp_path) == []
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "file", 1, 5) == [2, 3]
    assert str(tmp_path / "file") in caplog.text
