from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from roberta_dist.config.optim import ScheduleConfig
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.config.train import TrainConfig
from roberta_dist.errors import LaunchError
from roberta_dist.launcher.attempts import Ended
from roberta_dist.launcher.outcome import outcome
from roberta_dist.runtime.rundir import RunPaths

pytestmark = pytest.mark.unit


@pytest.fixture
def config(tmp_path):
    schedule = ScheduleConfig(max_steps=10, warmup_steps=1)
    return PretrainConfig(run_dir=str(tmp_path / "run"), schedule=schedule)


@pytest.fixture
def attempt(config):
    paths = RunPaths(Path(config.run_dir))
    folder = paths.logs / "attempt_000"
    folder.mkdir(parents=True)
    return paths, folder


def ended(code, interrupted=False):
    return Ended(f"DeepSpeed's launcher says {code}", code == 0, interrupted)


def leave(path, step=10, reason="max_steps"):
    path.write_text(json.dumps({"step": step, "reason": reason}))


def test_done_and_requeue_are_success_whatever_deepspeed_says(config, attempt):
    paths, folder = attempt
    leave(paths.requeue, 3, "signal")
    assert outcome(config, paths, folder, ended(1, True)) == 0
    paths.requeue.unlink()
    leave(paths.done)
    assert outcome(config, paths, folder, ended(247)) == 0


def test_done_of_a_shorter_run_is_not_done(config, attempt):
    paths, folder = attempt
    leave(paths.done, 5)
    with pytest.raises(LaunchError):
        outcome(config, paths, folder, ended(0))
    leave(paths.done, 5, "early_stop")
    assert outcome(config, paths, folder, ended(0)) == 0


@pytest.mark.parametrize("code", [2, 3, 4, 5])
def test_the_workers_word_counts(config, attempt, code):
    paths, folder = attempt
    (folder / "exit_code").write_text(f"{code}\n")
    assert outcome(config, paths, folder, ended(143)) == code


def test_an_unexpected_error_is_a_launch_failure(config, attempt):
    paths, folder = attempt
    (folder / "exit_code").write_text("1\n")
    with pytest.raises(LaunchError, match="attempt_000"):
        outcome(config, paths, folder, ended(1))


def test_exit_0_without_a_word_is_a_failure(config, attempt):
    paths, folder = attempt
    with pytest.raises(LaunchError, match="without finishing"):
        outcome(config, paths, folder, ended(0))
    (folder / "exit_code").unlink()
    assert outcome(config, paths, folder, ended(-2, True)) == 130
    (folder / "exit_code").unlink()
    dry = replace(config, train=TrainConfig(dry_run=True))
    assert outcome(dry, paths, folder, ended(0)) == 0


def test_an_attempt_that_left_nothing_is_spoken_for(config, attempt):
    paths, folder = attempt
    assert outcome(config, paths, folder, ended(-2, True)) == 130
    assert (folder / "exit_code").read_text() == "130\n"
    (folder / "exit_code").write_text("1\n")
    with pytest.raises(LaunchError):
        outcome(config, paths, folder, ended(1))
    assert (folder / "exit_code").read_text() == "1\n"
