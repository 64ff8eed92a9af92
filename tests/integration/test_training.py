"""Runs that are killed, stopped, damaged and moved to other worlds."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from run_support import (
    deterministic,
    finish,
    losses,
    metrics,
    same_weights,
    start,
    wait_for_step,
    write_config,
)

from roberta_dist.checkpoint.reader import latest_checkpoint, load_weights
from roberta_dist.runtime.rundir import complete_steps

pytestmark = pytest.mark.world
LAST = "checkpoints/step_00000040"


def test_a_run_leaves_what_it_promises(uninterrupted):
    assert json.loads((uninterrupted / "DONE").read_text()) == {"step": 40, "reason": "max_steps"}
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "attempts.log"):
        assert (uninterrupted / name).is_file(), name
    lines = metrics(uninterrupted)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 41))
    assert [line["step"] for line in lines if "eval_loss" in line] == [20, 40]
    watched = [line for line in lines if "layer_update_ratio/layers.1" in line]
    assert [line["step"] for line in watched] == [15, 30]
    for line in watched:
        squares = [v**2 for name, v in line.items() if name.startswith("layer_grad_norm/")]
        assert len(squares) == 4 and sum(squares) ** 0.5 == pytest.approx(line["grad_norm"])
    assert lines[-1]["eval_loss"] < 6.9  # below ln(1000): it learned something
    trace = losses(uninterrupted)
    assert trace[40] < trace[1]


def test_a_run_leaves_a_trace_of_chosen_steps(uninterrupted):
    """And of no others; that its digits stay is what the killed runs, which have none, show."""
    assert [path.name for path in (uninterrupted / "profile").iterdir()] == ["steps_3-4"]
    folder = uninterrupted / "profile" / "steps_3-4"
    assert {path.name for path in folder.iterdir()} == {"trace.json", "operators.txt", "memory.txt"}
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    names = [event.get("name") for event in events]
    assert [name for name in names if str(name).startswith("step ")] == ["step 3", "step 4"]
    assert "aten::addmm" in names
    for table in ("operators.txt", "memory.txt"):
        text = (folder / table).read_text()
        assert text.startswith("Steps 3 to 4. A profiler ran") and "aten::addmm" in text
    assert "CPU Mem" in (folder / "memory.txt").read_text()
    lines = [line for line in metrics(uninterrupted) if "loss" in line]
    assert [line["step"] for line in lines if "profiled" in line] == [3, 4]


def test_killed_and_started_again_nothing_differs(tmp_path, corpus, uninterrupted):
    run_dir = tmp_path / "killed"
    waited_for = "checkpoint.asynchronous=false"  # so that it is known what is lost
    config = write_config(run_dir, corpus, "checkpoint.keep_last=9", waited_for)
    for attempt, step in enumerate((14, 33)):
        ranks = start(config, 2, f"attempt_{attempt:03d}")
        wait_for_step(run_dir, ranks, step)
        ranks.signal(signal.SIGKILL)
        ranks.wait()
    assert not (run_dir / "DONE").exists()
    finish(config, 2, "attempt_002")
    assert deterministic(run_dir) == deterministic(uninterrupted)
    assert same_weights(run_dir / LAST, uninterrupted / LAST)
    removed = (run_dir / "logs" / "attempt_002" / "removed_metrics.jsonl").read_text()
    assert json.loads(removed.split("\n")[0])["step"] == 31


def test_a_stop_request_saves_and_the_next_start_goes_on(tmp_path, corpus, uninterrupted):
    run_dir = tmp_path / "stopped"
    config = write_config(run_dir, corpus, "checkpoint.keep_last=9")
    ranks = start(config, 2)
    wait_for_step(run_dir, ranks, 5)
    ranks.processes[1].send_signal(signal.SIGTERM)  # one rank alone is asked
    assert ranks.wait() == [0, 0], ranks.output()[-3000:]
    left = json.loads((run_dir / "REQUEUE").read_text())
    assert left["reason"] == "signal" and 5 <= left["step"] < 40
    assert not (run_dir / "DONE").exists()
    finish(config, 2, "attempt_001")
    assert not (run_dir / "REQUEUE").exists()
    assert deterministic(run_dir) == deterministic(uninterrupted)
    assert same_weights(run_dir / LAST, uninterrupted / LAST)


@pytest.fixture(scope="module")
def without_dropout(tmp_path_factory, corpus):
    run_dir = tmp_path_factory.mktemp("runs") / "plain"
    overrides = ["checkpoint.keep_last=9", *NO_DROPOUT]
    finish(write_config(run_dir, corpus, *overrides), 2)
    return run_dir


NO_DROPOUT = ["model.dropout=0", "model.attention_dropout=0"]


@pytest.mark.parametrize("stage", [0, 3])
def test_another_world_and_stage_go_on(tmp_path, corpus, without_dropout, stage):
    run_dir = tmp_path / "moved"
    first = without_dropout / "checkpoints" / "step_00000010"
    shutil.copytree(first, run_dir / "checkpoints" / first.name)
    finish(write_config(run_dir, corpus, *NO_DROPOUT, f"engine.stage={stage}"), 1)
    expected, found = losses(without_dropout), losses(run_dir)
    assert sorted(found) == list(range(11, 41))
    assert max(abs(found[s] - expected[s]) / expected[s] for s in found) < 1e-5
    assert f"engine.stage: 1 → {stage}" in (run_dir / "attempts.log").read_text()


def test_a_changed_identity_key_stops_before_training(tmp_path, corpus, uninterrupted):
    run_dir = tmp_path / "changed"
    shutil.copytree(uninterrupted / LAST, run_dir / LAST)
    config = write_config(run_dir, corpus, "optim.lr=5e-4", "schedule.max_steps=50")
    ranks = start(config, 1)
    assert ranks.wait() == [2]
    assert "optim.lr: 0.002 → 0.0005" in ranks.output()
    assert "schedule.max_steps: 40 → 50" in ranks.output()


def test_a_damaged_shard_stops_every_rank(tmp_path, corpus):
    damaged = tmp_path / "corpus"
    shutil.copytree(corpus, damaged)
    for shard in (damaged / "train").glob("shard-*.tar"):
        data = bytearray(shard.read_bytes())
        for place in range(3000, len(data), 16_000):
            data[place] ^= 1
        shard.write_bytes(data)
    ranks = start(write_config(tmp_path / "run", damaged), 2)
    assert ranks.wait(60) == [3, 3]
    assert "crc32 differs" in ranks.output() and "rows [0, 16)" in ranks.output()
    assert (tmp_path / "run" / "logs" / "attempt_000" / "exit_code").read_text() == "3\n"


def test_a_shard_that_goes_bad_costs_no_step_that_was_done(tmp_path, corpus):
    """Read to the middle, then damaged: what was trained until then is saved."""
    run_dir, damaged = tmp_path / "run", tmp_path / "corpus"
    shutil.copytree(corpus, damaged)
    config = write_config(
        run_dir, damaged, "checkpoint.every_steps=1000", "schedule.max_steps=4000"
    )
    ranks = start(config, 2)
    wait_for_step(run_dir, ranks, 5)
    for shard in (damaged / "train").glob("shard-*.tar"):
        data = bytearray(shard.read_bytes())
        for place in range(3000, len(data), 16_000):
            data[place] ^= 1
        shard.write_bytes(data)
    assert ranks.wait(60) == [3, 3]
    last = max(line["step"] for line in metrics(run_dir))
    assert last % 100 and complete_steps(run_dir / "checkpoints")[-1] == last


def test_dry_run_tries_everything_and_leaves_nothing(tmp_path, corpus):
    run_dir = tmp_path / "dry"
    ranks = finish(write_config(run_dir, corpus, "train.dry_run=true", "engine.stage=2"), 2)
    assert "all parts work" in ranks.output()
    assert not list((run_dir).glob("checkpoints/*")) and not (run_dir / "dry_run").exists()
    assert not (run_dir / "DONE").exists()


def test_early_stop(tmp_path, corpus):
    run_dir = tmp_path / "early"
    overrides = ["optim.lr=1e-12", "train.early_stop_patience=2", "evaluate.every_steps=4"]
    config = write_config(run_dir, corpus, *overrides, "schedule.decay=constant")
    finish(config, 1)
    done = json.loads((run_dir / "DONE").read_text())
    assert done["reason"] == "early_stop" and done["step"] < 40
    # killed between the last checkpoint and DONE
    (run_dir / "DONE").unlink()
    finish(config, 1, "attempt_001")
    assert json.loads((run_dir / "DONE").read_text()) == done
    assert max(line["step"] for line in metrics(run_dir)) == done["step"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 6 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], check=False
    )
    if mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here (needs root)")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_keeps_the_last_complete_checkpoint(tmp_path, corpus, small_disk):
    run_dir = small_disk / "run"
    config = write_config(run_dir, corpus, "checkpoint.keep_last=9", "checkpoint.every_steps=1")
    ranks = start(config, 1, output=tmp_path)
    assert ranks.wait() == [3], ranks.output()[-3000:]
    assert "no space left" in ranks.output() and str(run_dir) in ranks.output()
    newest = latest_checkpoint(run_dir)
    assert newest is not None and load_weights(newest)
    assert not list((run_dir / "checkpoints").glob(".tmp*"))


def test_metrics_that_can_never_be_written_stop_every_rank_at_the_last_save(tmp_path, corpus):
    run_dir = tmp_path / "run"
    config = write_config(run_dir, corpus)
    (run_dir / "metrics.jsonl").symlink_to("/dev/full")
    ranks = start(config, 2)
    assert ranks.wait(timeout=120)[0] == 3, ranks.output()[-3000:]
    assert f"{run_dir}/metrics.jsonl: cannot be written (No space left" in ranks.output()
    told = (run_dir / "logs" / "attempt_000" / "exit_code").read_text()
    assert told == "3\n"  # not the 1 of the rank that lost its peer


def roberta_dist(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "roberta_dist.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def test_evaluate_and_export_agree_with_the_run(uninterrupted, corpus):
    expected = [line for line in metrics(uninterrupted) if "eval_loss" in line][-1]["eval_loss"]
    told = roberta_dist("evaluate", f"run_dir={uninterrupted}", "evaluate.max_rows=32")
    assert f"held-out loss             {expected:.4f}" in told.stdout, told.stdout + told.stderr
    exported = roberta_dist("export", f"run_dir={uninterrupted}")
    assert exported.returncode == 0, exported.stdout + exported.stderr
    folder = uninterrupted / "export"
    again = roberta_dist(
        "evaluate", f"model_path={folder}", f"corpus_path={corpus}", "evaluate.max_rows=32",
        "sequence_length=64",
    )  # fmt: skip
    assert f"held-out loss             {expected:.4f}" in again.stdout, again.stdout + again.stderr


def test_start_of_a_finished_run_does_nothing(uninterrupted):
    before = Path(uninterrupted / "metrics.jsonl").read_bytes()
    ranks = finish(uninterrupted / "config.yaml", 1, "attempt_009")
    assert "already complete" in ranks.output()
    assert Path(uninterrupted / "metrics.jsonl").read_bytes() == before
