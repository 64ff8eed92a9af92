"""Runs that meet damage, non-finite numbers, spikes, silence and a change of corpus."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_support import (
    TINY,
    deterministic,
    finish,
    free_port,
    losses,
    metrics,
    prepare_corpus,
    same_weights,
    start,
    wait_for_step,
    worker_of,
    world_environ,
    write_config,
)

from roberta_dist.checkpoint.reader import load_weights
from roberta_dist.runtime.rundir import complete_steps

pytestmark = pytest.mark.world
LAST = "checkpoints/step_00000040"
KEEP = "checkpoint.keep_last=9"


def test_a_damaged_newest_checkpoint_costs_steps_and_no_digit(tmp_path, corpus, uninterrupted):
    run_dir = tmp_path / "run"
    config = write_config(run_dir, corpus, KEEP)
    ranks = start(config, 2)
    wait_for_step(run_dir, ranks, 35)
    ranks.signal(signal.SIGKILL)
    ranks.wait()
    newest = complete_steps(run_dir / "checkpoints")[-1]
    shard = run_dir / f"checkpoints/step_{newest:08d}/shards/rank_00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    strict = write_config(run_dir, corpus, KEEP, "checkpoint.strict=true")
    ranks = start(strict, 2, "attempt_001")
    assert ranks.wait() == [3, 3] and str(shard) in ranks.output()
    ranks = finish(write_config(run_dir, corpus, KEEP), 2, "attempt_002")
    assert f"{shard}: " in ranks.output() and f"step_{newest - 10:08d}" in ranks.output()
    assert (run_dir / f"checkpoints/damaged_step_{newest:08d}").is_dir()
    assert deterministic(run_dir) == deterministic(uninterrupted)
    assert same_weights(run_dir / LAST, uninterrupted / LAST)


@pytest.mark.parametrize(
    "engine", [("engine.stage=0",), ("engine.stage=2", "engine.precision=bf16")]
)
def test_a_nan_is_left_out_like_a_listed_step(tmp_path, corpus, engine):
    """Row 101 is of step 7; what is left out neither trains nor stops, and is noted once."""
    runs = {}
    settings = [KEEP, "schedule.max_steps=12", *engine]
    for name, override in (
        ("nan", ["guard.inject_nan_rows=[101]", "train.skip_budget=1"]),
        ("listed", ["train.skip_steps=[7]"]),
    ):
        runs[name] = tmp_path / name
        finish(write_config(runs[name], corpus, *settings, *override), 2)
    assert deterministic(runs["nan"]) == deterministic(runs["listed"])
    last = "checkpoints/step_00000012"
    assert same_weights(runs["nan"] / last, runs["listed"] / last)
    lines = [line for line in metrics(runs["nan"]) if line["step"] == 7]
    assert len(lines) == 1 and lines[0]["loss"] is None and lines[0]["skipped"] == 1
    (entry,) = (runs["nan"] / "skips.jsonl").read_text().splitlines()
    assert json.loads(entry) | {"loss": "", "grad_norm": ""} == {
        "step": 7, "first_row": 96, "end_row": 112, "reason": "non_finite", "loss": "", "grad_norm": "",
    }  # fmt: skip


def test_a_nan_beyond_the_budget_stops_every_rank(tmp_path, corpus):
    config = write_config(tmp_path, corpus, "guard.inject_nan_rows=[33]")
    ranks = start(config, 2)
    assert ranks.wait() == [4, 4]
    assert "rows [32, 48), and train.skip_budget=0 is used up" in ranks.output()


def test_rollbacks_survive_a_kill_and_never_loop(tmp_path, corpus):
    """A threshold so low, and steps so small, that ordinary noise counts as spikes."""
    settings = [
        KEEP, "optim.lr=1e-5", "guard.spike=rollback", "guard.spike_zscore=1.2", "guard.spike_window=10",
        "guard.spike_budget=100", "guard.rollback_batches=3",
    ]  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    ranks = finish(write_config(whole, corpus, *settings), 1)
    entries = [json.loads(line) for line in (whole / "skips.jsonl").read_text().splitlines()]
    reasons = [entry["reason"] for entry in entries]
    assert "rollback" in reasons and "rolled back to step" in ranks.output()
    steps = [line["step"] for line in metrics(whole) if "loss" in line]
    assert steps == list(range(1, 41))
    config = write_config(killed, corpus, *settings)
    first = next(entry["step"] for entry in entries if entry["reason"] == "rollback")
    ranks = start(config, 1)
    while (
        not (killed / "skips.jsonl").exists()
        or "rollback" not in (killed / "skips.jsonl").read_text()
    ):
        assert ranks.processes[0].poll() is None
        time.sleep(0.001)
    ranks.signal(signal.SIGKILL)  # somewhere in going back to the checkpoint
    ranks.wait()
    finish(config, 1, "attempt_001")
    assert first <= 40 and deterministic(killed) == deterministic(whole)
    assert same_weights(killed / LAST, whole / LAST)


def test_a_stop_while_starting_does_no_step(tmp_path, corpus):
    """The last rank alone is asked, in the middle of its start."""
    run_dir = tmp_path / "run"
    config = write_config(run_dir, corpus)
    script = Path(__file__).parents[1] / "acceptance" / "support" / "signal_worker.py"
    port, processes = free_port(), []
    for rank in range(2):
        environ = os.environ | world_environ(rank, 2, port, "attempt_000")
        command = [sys.executable, str(script), "start-up", str(config)]
        processes.append(subprocess.Popen(command, env=environ))
    assert [process.wait(240) for process in processes] == [0, 0]
    assert json.loads((run_dir / "REQUEUE").read_text()) == {"step": 0, "reason": "signal"}
    assert metrics(run_dir) == [] and not (run_dir / "checkpoints").exists()
    assert not (run_dir / "attempts.log").exists(), "the start went on to its end"


def test_a_stop_before_torch_is_there_leaves_word(tmp_path, corpus):
    run_dir = tmp_path / "run"
    ranks = start(write_config(run_dir, corpus), 1)
    process = ranks.processes[0]
    caught, maps = 0, Path(f"/proc/{process.pid}/maps")
    while not caught & 1 << (signal.SIGTERM - 1):
        assert process.poll() is None
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = int(status.split("SigCgt:")[1].split()[0], 16)
    assert "libtorch" not in maps.read_text()
    process.send_signal(signal.SIGTERM)
    assert ranks.wait() == [0]
    assert json.loads((run_dir / "REQUEUE").read_text()) == {"step": 0, "reason": "signal"}


def test_a_stop_in_an_evaluation_ends_it_and_it_is_made_up_for(tmp_path, corpus, uninterrupted):
    run_dir = tmp_path / "run"
    overrides = [KEEP, "evaluate.batch_size=1"]
    config = write_config(run_dir, corpus, *overrides)
    ranks = start(config, 2)
    wait_for_step(run_dir, ranks, 20)  # its line comes before its evaluation
    ranks.processes[0].send_signal(signal.SIGTERM)
    assert ranks.wait() == [0, 0], ranks.output()[-3000:]
    assert json.loads((run_dir / "REQUEUE").read_text()) == {"reason": "signal", "step": 20}
    assert not [line for line in metrics(run_dir) if "eval_loss" in line]
    finish(config, 2, "attempt_001")
    found, expected = losses(run_dir), losses(uninterrupted)
    assert found == expected
    evaluated = [line["step"] for line in metrics(run_dir) if "eval_loss" in line]
    assert evaluated == [20, 40]


def test_another_run_begins_with_the_weights_of_this_one(tmp_path, corpus, uninterrupted):
    settings = [KEEP, "schedule.max_steps=2", "schedule.warmup_steps=0", "optim.lr=1e-9",
                "checkpoint.every_steps=1"]  # fmt: skip
    begun = load_weights(uninterrupted / LAST)
    for with_moments in (False, True):
        run_dir = tmp_path / f"moments_{with_moments}"
        init = [f"init={uninterrupted}", f"init_optimizer={str(with_moments).lower()}"]
        ranks = finish(write_config(run_dir, corpus, *settings, "data.format=blocks", *init), 1)
        assert "begins with the weights" in ranks.output()
        first = load_weights(run_dir / "checkpoints/step_00000001")
        assert all(abs(first[name] - begun[name]).max() < 1e-7 for name in begun)
        state = json.loads((run_dir / "checkpoints/step_00000001/train_state.json").read_text())
        assert state["optimizer_step"] == (41 if with_moments else 1)
        assert state["next_row"] == 16
    other = prepare_corpus(tmp_path / "other", "tokenizer.vocab_size=900")
    ranks = start(write_config(tmp_path / "refused", other, f"init={uninterrupted}"), 1)
    assert ranks.wait() == [2] and "its tokenizer" in ranks.output()


def launch(run_dir, corpus, *overrides):
    settings = [
        f"run_dir={run_dir}", f"data.path={corpus}", *TINY, KEEP, "cluster.workers_per_node=2",
        "cluster.restart_delay_s=0.1", *overrides,
    ]  # fmt: skip
    log = open(run_dir.parent / "launch.log", "wb")  # noqa: SIM115
    command = [sys.executable, "-m", "roberta_dist.cli", "launch", *settings]
    return subprocess.Popen(
        command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def reach(run_dir, launcher, step):
    deadline = time.monotonic() + 120
    while not any(line["step"] >= step for line in metrics(run_dir)):
        assert launcher.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_dies_or_stands_still_is_replaced(tmp_path, corpus, uninterrupted, signum):
    run_dir = tmp_path / "run"
    launcher = launch(run_dir, corpus, "train.hang_timeout_s=4")
    reach(run_dir, launcher, 22)
    worker_of(run_dir, 1).send_signal(signum)
    assert launcher.wait(180) == 0, (tmp_path / "launch.log").read_text()[-3000:]
    told = (tmp_path / "launch.log").read_text()
    assert "again in 0.1 s" in told and (run_dir / "DONE").is_file()
    assert (run_dir / "logs" / "attempt_001").is_dir()
    if signum == signal.SIGSTOP:
        assert "a rank hung" in told
        assert (run_dir / "logs" / "attempt_000" / "exit_code").read_text() == "5\n"
        stacks = (run_dir / "logs" / "attempt_000" / "rank_0.stacks").read_text()
        assert "no progress for" in stacks and "in fit" in stacks
    assert deterministic(run_dir) == deterministic(uninterrupted)
    assert same_weights(run_dir / LAST, uninterrupted / LAST)


def test_every_minutes_saves_beside_the_steps(tmp_path, corpus):
    settings = [KEEP, "checkpoint.every_steps=1000", "checkpoint.every_minutes=0.002"]
    finish(write_config(tmp_path, corpus, *settings), 2)
    assert len(complete_steps(tmp_path / "checkpoints")) >= 2
    assert not list((tmp_path / "checkpoints").glob(".*"))
    shutil.rmtree(tmp_path / "checkpoints")
