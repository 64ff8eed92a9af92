"""What a run leaves behind while it trains, and that a dashboard cannot hurt it."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import time

import pytest

from roberta_dist.config.watch import TrackConfig, WandbMode
from roberta_dist.errors import StorageError
from roberta_dist.track import sinks
from roberta_dist.track.names import DETERMINISTIC, METRICS, is_deterministic
from roberta_dist.track.sinks import (
    JsonlSink,
    ProgressSink,
    TensorboardSink,
    Tracker,
    open_tracker,
)
from roberta_dist.track.truncate import truncate_metrics

pytestmark = pytest.mark.unit

QUIET = TrackConfig(wandb=WandbMode.disabled, tensorboard=False, progress=False)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_deterministic_column_has_a_meaning():
    assert set(METRICS) > DETERMINISTIC


def test_losses_of_corpora_are_deterministic_and_times_are_not():
    assert all(map(is_deterministic, DETERMINISTIC))
    assert is_deterministic("eval_loss/wiki") and is_deterministic("nsp_accuracy")
    assert is_deterministic("layer_grad_norm/head") and is_deterministic(
        "layer_trust_ratio/layers.0"
    )
    assert not any(map(is_deterministic, ("step_time_s", "mfu", "eval_losses", "eval_time_s")))


def test_a_line_is_on_disk_before_the_sink_is_closed(tmp_path):
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.log(1, {"loss": 0.1 + 0.2, "lr": 6e-4})
    (line,) = lines(sink.path)
    assert abs(line.pop("time") - time.time()) < 5
    assert line == {"step": 1, "loss": 0.1 + 0.2, "lr": 6e-4}
    sink.close()


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path):
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.log(3, {"loss": math.nan, "grad_norm": math.inf, "lr": 1.0})
    sink.close()

    def refuse(constant):
        pytest.fail(f"{constant} is not JSON")

    row = json.loads(sink.path.read_text(), parse_constant=refuse)
    assert row == {"step": 3, "time": row["time"], "loss": None, "grad_norm": None, "lr": 1.0}


def test_a_second_attempt_appends(tmp_path):
    for step in (1, 2):
        tracker = open_tracker(QUIET, tmp_path, step - 1, 2, True, {})
        tracker.log(step, {"loss": float(step)})
        tracker.close()
    assert [row["step"] for row in lines(tmp_path / "metrics.jsonl")] == [1, 2]


def test_other_ranks_write_nothing(tmp_path):
    tracker = open_tracker(TrackConfig(), tmp_path, 0, 10, False, {})
    tracker.log(1, {"loss": 1.0})
    tracker.flush()
    tracker.close()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_with_the_path(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    with caplog.at_level(logging.WARNING):
        for step in (1, 2, 3):
            sink.log(step, {"loss": 1.0})
        assert caplog.text.count("lines are kept") == 1
        with pytest.raises(
            StorageError, match=r"metrics\.jsonl: cannot be written \(No space left"
        ):
            sink.flush()
        sink.close()
    assert "3 lines of metrics are lost" in caplog.text


def test_what_a_full_disk_did_not_take_is_written_when_it_does(tmp_path, monkeypatch):
    """In order, and no line twice, though a disk that gets full takes the beginning of one."""
    sink, room, write = JsonlSink(tmp_path / "metrics.jsonl"), [1 << 20], os.write

    def limited(descriptor: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = write(descriptor, data[: room[0]])
        room[0] -= taken
        return taken

    monkeypatch.setattr(sinks.os, "write", limited)
    sink.log(1, {"loss": 1.0})
    room[0] = 7
    sink.log(2, {"loss": 2.0})
    sink.log(3, {"loss": 3.0})
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1
    room[0] = 1 << 20
    sink.log(4, {"loss": 4.0})
    sink.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(i, float(i)) for i in (1, 2, 3, 4)]


class Broken:
    def __init__(self):
        self.calls = 0

    def log(self, step, metrics):
        self.calls += 1
        raise RuntimeError("the server is away")

    def flush(self):
        raise RuntimeError("the server is away")

    close = flush


def test_a_dashboard_that_fails_is_one_warning_and_no_more(tmp_path, caplog):
    broken, kept = Broken(), JsonlSink(tmp_path / "metrics.jsonl")
    tracker = Tracker([kept], [broken])
    with caplog.at_level(logging.WARNING, "roberta_dist.track"):
        for step in (1, 2, 3):
            tracker.log(step, {"loss": 1.0})
        tracker.flush()
        tracker.close()
    assert broken.calls == 1
    assert [record.getMessage() for record in caplog.records] == [
        "Broken is left out from now on: the server is away"
    ]
    assert [row["step"] for row in lines(kept.path)] == [1, 2, 3]


def test_tensorboard_hides_what_a_killed_attempt_wrote_past_its_checkpoint(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = TensorboardSink(tmp_path, resume_step=0)
    for step in (1, 2, 3, 4):
        first.log(step, {"loss": 10.0 + step})
    first.close()
    second = TensorboardSink(tmp_path, resume_step=2)
    second.log(3, {"loss": 0.5, "eval_loss": 0.25})
    second.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    shown = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert shown == [(1, 11.0), (2, 12.0), (3, 0.5)]
    assert [event.value for event in events.Scalars("held_out/eval_loss")] == [0.25]


def test_the_bar_shows_step_loss_and_speed_from_where_the_run_resumes(capsys):
    bar = ProgressSink(resume_step=40, total_steps=100)
    bar.log(50, {"loss": 7.25, "tokens_per_s": 1234.4})
    bar.log(50, {"eval_loss": 7.0})
    bar.close()
    shown = capsys.readouterr().err
    assert "50/100" in shown and "loss=7.250" in shown and "tok/s=1234" in shown


def test_a_dashboard_that_cannot_start_stops_no_run(tmp_path, monkeypatch, caplog):
    def dead(*_, **__):
        raise BrokenPipeError("the terminal is gone")

    (tmp_path / "tensorboard").write_text("in the way")
    monkeypatch.setattr("roberta_dist.track.sinks.tqdm", dead)
    shown = TrackConfig(wandb=WandbMode.disabled, tensorboard=True, progress=True)
    with caplog.at_level(logging.WARNING, "roberta_dist.track"):
        tracker = open_tracker(shown, tmp_path, 0, 1, True, {})
        tracker.log(1, {"loss": 1.0})
        tracker.close()
    assert len(caplog.records) == 2 and "the terminal is gone" in caplog.text
    assert [row["step"] for row in lines(tmp_path / "metrics.jsonl")] == [1]


# metrics.jsonl is cut back to the checkpoint's step


def write(path, steps, end="\n"):
    rows = [json.dumps({"step": step, "loss": 0.5}) for step in steps]
    path.write_text("\n".join(rows) + end)


def test_lines_after_the_checkpoint_are_moved_not_lost(tmp_path):
    path, removed = tmp_path / "metrics.jsonl", tmp_path / "logs" / "removed.jsonl"
    write(path, [1, 2, 2, 3, 4])
    assert truncate_metrics(path, 2, removed, True) == 2
    assert [row["step"] for row in lines(path)] == [1, 2, 2]
    assert [row["step"] for row in lines(removed)] == [3, 4]
    assert truncate_metrics(path, 0, removed, True) == 3
    assert path.read_text() == ""
    assert [row["step"] for row in lines(removed)] == [3, 4, 1, 2, 2]


def test_a_half_written_line_is_moved_too(tmp_path):
    path, removed = tmp_path / "metrics.jsonl", tmp_path / "removed.jsonl"
    write(path, [1, 2], end='\n{"step": 1, "lo')
    assert truncate_metrics(path, 2, removed, True) == 1
    assert [row["step"] for row in lines(path)] == [1, 2]
    assert removed.read_text() == '{"step": 1, "lo\n'


def test_nothing_to_cut_touches_nothing(tmp_path):
    path, removed = tmp_path / "metrics.jsonl", tmp_path / "removed.jsonl"
    assert truncate_metrics(path, 5, removed, True) == 0
    write(path, [1, 2])
    before = path.stat().st_mtime_ns
    assert truncate_metrics(path, 5, removed, True) == 0
    assert path.stat().st_mtime_ns == before
    assert not removed.exists()


def test_a_last_line_without_its_newline_does_not_swallow_the_next(tmp_path):
    path, removed = tmp_path / "metrics.jsonl", tmp_path / "removed.jsonl"
    write(path, [1, 2], end="")
    assert truncate_metrics(path, 2, removed, True) == 0
    sink = JsonlSink(path)
    sink.log(3, {"loss": 1.0})
    sink.close()
    assert [row["step"] for row in lines(path)] == [1, 2, 3]


def test_what_a_power_cut_left_is_moved_too(tmp_path):
    path, removed = tmp_path / "metrics.jsonl", tmp_path / "removed.jsonl"
    whole = b'{"step": 1, "loss": 0.5}\n'
    damage = [b"\x00\x00\x00\x00", b"\xff\xfe{", b"[]", b'{"step": NaN}', b'{"step": "2"}']
    path.write_bytes(whole + b"\n".join(damage))
    assert truncate_metrics(path, 2, removed, True) == len(damage)
    assert path.read_bytes() == whole
    assert removed.read_bytes().splitlines() == damage


def test_an_evaluation_that_will_come_again_loses_its_line(tmp_path):
    path, removed = tmp_path / "metrics.jsonl", tmp_path / "removed.jsonl"
    rows = [{"step": 4, "eval_loss": 4.0}, {"step": 8, "loss": 3.0}, {"step": 8, "eval_loss": 3.5}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert truncate_metrics(path, 8, removed, evaluated=True) == 0
    assert truncate_metrics(path, 8, removed, evaluated=False) == 1
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows[:2]
