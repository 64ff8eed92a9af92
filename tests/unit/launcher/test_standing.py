"""How a run stands, from what lies in its folder and what was found outside."""

from __future__ import annotations

from datetime import datetime

import pytest
from run_folders import NOW, Folder

from roberta_dist.errors import ConfigError
from roberta_dist.launcher.pace import step_s, time_left_s, tokens_per_s
from roberta_dist.launcher.run_files import complaints, read_run_files
from roberta_dist.launcher.scheduler import Answer, Job
from roberta_dist.launcher.standing import State, Surroundings, judge

pytestmark = pytest.mark.unit
NOBODY = Surroundings(launcher=None, workers=[], answer=Answer())


@pytest.fixture
def run(tmp_path):
    return Folder(tmp_path / "run")


def stands(run, around=NOBODY):
    standing = judge(read_run_files(run.paths.root), around, NOW)
    return standing.state, standing.detail


def job(state, job_id="7", reason="", start=None, exit_code="", nodes=""):
    end = datetime(2026, 11, 27, 12, 0)
    return Job(job_id, state, start, end, nodes, 0, exit_code, reason)


def with_jobs(*jobs):
    return Surroundings(None, [], Answer(list(jobs)))


def test_nothing_started_yet(run):
    assert stands(run.config()) == (State.not_started, "")
    with pytest.raises(ConfigError, match="no run there"):
        read_run_files(run.paths.root.parent)


@pytest.mark.parametrize(
    ("found", "detail"),
    [
        (Surroundings(12, [0, 1], Answer()), "launcher 12"),
        (Surroundings(12, [], Answer()), "launcher 12, no worker at the moment"),
        (Surroundings(None, [0, 1], Answer()), "2 worker(s) on this machine, no launcher"),
    ],
)
def test_running_here(run, found, detail):
    """Whatever earlier attempts left."""
    run.config().launched().attempt().exit_code(6).sentinel("REQUEUE", 9)
    assert stands(run, found) == (State.running, detail)
    run.sentinel("STOP", 0, ago=1)
    assert stands(run, found) == (State.stopping, detail)


def test_an_old_stop_does_not_speak_for_workers_that_nobody_launched(run):
    run.config().sentinel("STOP", 0, ago=4000).attempt()
    assert stands(run, Surroundings(None, [0], Answer()))[0] is State.running


def test_a_stop_that_came_before_the_workers_could_save(run):
    run.config().launched().sentinel("STOP", 0, ago=1)
    assert stands(run)[0] is State.stopped
    run.launched("slurm", job_id="7", role="read")
    failed = stands(run, with_jobs(job("FAILED", exit_code="1:0")))
    assert failed == (State.stopped, "before job 7 (read) began; `launch` begins again")


def test_ends(run):
    run.config().launched().attempt().metrics(50).checkpoint(40)
    assert stands(run) == (
        State.lost,
        "launcher 4999999 is gone without DONE or REQUEUE; nothing written for 10m00s; "
        "`launch` goes on from step 40",
    )
    run.exit_code(4)
    state, detail = stands(run)
    assert state is State.failed and detail.startswith("exit code 4: non-finite numbers; `launch`")
    run.exit_code(130)
    assert stands(run) == (State.stopped, "at once; `launch` goes on from step 40")
    run.sentinel("REQUEUE", 50)
    assert stands(run) == (State.stopped, "on request at step 50; `launch` goes on from there")
    run.sentinel("DONE", 100)
    assert stands(run) == (State.done, "at step 100")


def test_done_of_a_shorter_run_and_an_old_requeue_are_no_end(run):
    run.config().attempt().sentinel("DONE", 50).sentinel("REQUEUE", 50, ago=1200).launched(ago=900)
    assert stands(run)[0] is State.lost
    run.exit_code(3, ago=600)
    assert stands(run)[0] is State.failed
    run.launched(ago=300)
    assert stands(run)[0] is State.lost


def test_jobs(run):
    run.config().launched("slurm", job_id="7").launched("slurm", job_id="8", role="prepare")
    waiting = job("PENDING", reason="Resources", start=datetime(2026, 11, 27, 9, 5))
    expected = "job 7 waits: Resources, expected to start 2026-11-27 09:05"
    assert stands(run, with_jobs(waiting)) == (State.queued, expected)
    prepares = job("RUNNING", "8", nodes="node[1-2]")
    assert stands(run, with_jobs(waiting, prepares)) == (
        State.running,
        "job 8 (prepare) RUNNING on node[1-2], limit at 2026-11-27 12:00",
    )
    run.sentinel("STOP", 0)
    assert stands(run, with_jobs(job("COMPLETING")))[0] is State.stopping


def test_jobs_that_ended(run):
    run.config().launched("slurm", job_id="3", pid=5)
    run.launched("slurm", job_id="7").launched("slurm", job_id="8")
    chain = [job("CANCELLED", "8", "Dependency"), job("FAILED", "7", "NonZeroExitCode", exit_code="7:0")]  # fmt: skip
    assert stands(run, with_jobs(*chain)) == (
        State.failed, "job 7 FAILED 7:0 NonZeroExitCode; `launch` begins again",
    )  # fmt: skip
    assert stands(run, with_jobs(job("CANCELLED"))) == (
        State.stopped, "job 7 was cancelled; `launch` begins again",
    )  # fmt: skip
    # jobs of an earlier launch say nothing about this one
    assert stands(run, with_jobs(job("TIMEOUT", "3")))[0] is State.lost
    assert "job 8 is gone" in stands(run)[1]


def test_what_cannot_be_asked_is_said(run):
    run.config().launched("slurm", job_id="7").attempt().metrics(5)
    mute = Surroundings(None, [], Answer(problem="squeue: not found on this machine"))
    assert stands(run, mute) == (
        State.unknown, "squeue: not found on this machine; nothing written for 10m00s",
    )  # fmt: skip
    run.metrics(6, first=6, ago=10)
    state, detail = stands(run, mute)
    assert state is State.running and detail.startswith("by its files alone; squeue: not found")


def test_another_machine_is_named(run):
    run.config().launched("hostfile", host="elsewhere").attempt()
    state, detail = stands(run)
    assert state is State.unknown and "launched on elsewhere" in detail


def test_files(run):
    run.config(200).launched().attempt().metrics(100)
    run.attempt(1, ago=650, step=80).metrics(140, first=81, ago=10, seconds=3)
    run.checkpoint(80).checkpoint(120, ago=60)
    (run.paths.checkpoints / "step_00000130").mkdir()  # without its marker
    (run.paths.checkpoints / "damaged_step_00000100").mkdir()
    files = read_run_files(run.paths.root)
    assert files.checkpoint and files.checkpoint[0] == 120
    assert files.damaged == ["damaged_step_00000100"]
    assert files.attempt and files.attempt.name == "attempt_001" and files.restarts == 1
    assert (files.last["step"], files.held_out["step"], files.first_step) == (140, 140, 80)
    assert files.max_steps == 200 and files.disk_free > 0


def test_a_damaged_folder_still_speaks(run):
    run.attempt().metrics(3)
    run.paths.config_yaml.write_text("schedule: [")
    run.paths.jobs.write_text(
        '{"time": 1}\nno json\n{"time": 2, "kind": "odd", "host": "", "pid": 1}\n'
    )
    run.paths.done.write_text("")
    run.paths.requeue.write_text("[]")
    files = read_run_files(run.paths.root)
    assert files.launches == [] and files.max_steps is None and files.done is None
    assert files.last["step"] == 3 and stands(run)[0] is State.lost


def test_pace_holds_evaluations_and_saves_and_no_restart(run):
    run.config(200).metrics(100, ago=5000).attempt(step=100).metrics(
        140, first=101, ago=10, seconds=3
    )
    files = read_run_files(run.paths.root)
    assert step_s(files.rows, files.first_step) == pytest.approx(3)
    assert time_left_s(files.rows, files.first_step, 200) == pytest.approx(180)
    assert tokens_per_s(files.rows) == 1000
    assert tokens_per_s([{"step": 1, "tokens_per_s": 5.0, "profiled": 1}]) is None
    # a version that wrote no times, and a first step alone
    untimed = [{key: row[key] for key in row if key != "time"} for row in files.rows]
    assert step_s(untimed, 100) == step_s(files.rows[:1], 100) == 2
    assert step_s([], 0) is None and time_left_s(files.rows, 0, None) is None


def test_complaints():
    log = """\
2026-11-27 08:36:01,626 INFO step 300: held-out loss 5.9
2026-11-27 08:36:02,626 WARNING checkpoint of step 300 is not saved: disk full
  remedy: free space
2026-11-27 08:36:05,742 ERROR Traceback (most recent call last):
  File "run.py", line 62, in pretrain
RuntimeError: Connection reset by peer

"""
    assert complaints(log.splitlines()) == [
        "2026-11-27 08:36:02,626 WARNING checkpoint of step 300 is not saved: disk full",
        "2026-11-27 08:36:05,742 ERROR RuntimeError: Connection reset by peer",
    ]
    assert complaints([]) == complaints(["  a line cut off"]) == []
