"""What a real SLURM 22.05 printed, and how it is read; what happens without one."""

from __future__ import annotations

from datetime import datetime

import pytest

from roberta_dist.launcher.scheduler import (
    Answer,
    ask_scheduler,
    parse_sacct,
    parse_squeue,
    run_tool,
    sacct_command,
    squeue_command,
    tool_environment,
)

pytestmark = pytest.mark.unit

SQUEUE = """\
2|CANCELLED|2026-11-27T08:21:25|2026-11-27T08:21:25||0|0|Resources|
3|PENDING|N/A|N/A||0|0|Dependency|
4_[0-3%2]|PENDING|2026-11-27T09:31:00|2026-11-27T09:41:00||0|0|Priority|
8|COMPLETED|2026-11-27T08:21:28|2026-11-27T08:21:28|node1|0|0|None|
6|FAILED|2026-11-27T08:21:28|2026-11-27T08:21:28|node1|0|1792|NonZeroExitCode|
1|PENDING|2026-11-27T08:23:26|2026-11-27T08:53:26||1|0|BeginTime|
9|RUNNING|2026-11-27T08:21:28|2026-11-27T08:31:28|node[1-2]|0|0|None|
"""
SACCT = """\
1|FAILED|2026-11-27T08:44:37|2026-11-27T08:44:37|node1|7:0|None
3|CANCELLED by 0|2026-11-27T08:44:37|2026-11-27T08:44:41|node[1-2]|0:0|None
4_0|COMPLETED|2026-11-27T08:44:37|2026-11-27T08:44:37|node1|0:0|None
"""


def test_squeue_is_read():
    jobs = {job.job_id: job for job in parse_squeue(SQUEUE)}
    assert sorted(jobs) == ["1", "2", "3", "4_[0-3%2]", "6", "8", "9"]
    assert jobs["3"].waits and jobs["3"].start is None and jobs["3"].reason == "Dependency"
    assert jobs["1"].waits and jobs["1"].restarts == 1
    assert jobs["1"].start == datetime(2026, 11, 27, 8, 23, 26)
    assert jobs["9"].goes_on and jobs["9"].nodes == "node[1-2]" and jobs["9"].reason == ""
    assert (jobs["6"].exit_code, jobs["6"].reason) == ("7:0", "NonZeroExitCode")
    assert not any(jobs[name].goes_on or jobs[name].waits for name in ("2", "6", "8"))


def test_sacct_is_read():
    jobs = parse_sacct(SACCT)
    assert [(job.job_id, job.state, job.exit_code) for job in jobs] == [
        ("1", "FAILED", "7:0"), ("3", "CANCELLED", "0:0"), ("4_0", "COMPLETED", "0:0"),
    ]  # fmt: skip


def test_what_is_no_answer_is_left_out():
    assert parse_squeue("slurm_load_jobs: warning\n\n1|RUNNING\n") == []
    assert parse_sacct("x\n") == []


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A folder that alone is searched for SLURM's tools."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def put(name, script):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)

    return put


def test_without_slurm_that_is_said(tools):
    answer = ask_scheduler(["7"])
    assert answer.jobs == [] and answer.problem == "squeue: not found on this machine"


def test_a_forgotten_job_is_looked_up_in_the_accounts(tools):
    tools("squeue", f"echo '{SQUEUE.splitlines()[-1]}'")
    tools("sacct", f"echo '{SACCT.splitlines()[0]}'")
    answer = ask_scheduler(["9", "1"])
    assert [(job.job_id, job.state) for job in answer.of(["1", "9"])] == [
        ("1", "FAILED"), ("9", "RUNNING"),
    ]  # fmt: skip
    tools("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert [job.job_id for job in ask_scheduler(["9", "1"]).jobs] == ["9"]


def test_parts_of_an_array_are_found_by_its_number_or_their_own():
    lines = [f"{name}|RUNNING|N/A|N/A|node1|0|0|None|" for name in ("12_10", "12_2", "7_2")]
    answer = Answer(parse_squeue("\n".join(lines)))
    assert [job.job_id for job in answer.of(["12_2"])] == ["12_2"]
    assert [job.job_id for job in answer.of(["12", "7_2"])] == ["7_2", "12", "12"]
    assert answer.of(["2"]) == []


def test_an_unknown_job_is_no_failure_and_a_dead_controller_is(tools):
    tools("sacct", "exit 1")
    tools("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert ask_scheduler(["9"]).problem == "" and ask_scheduler(["9"]).jobs == []
    tools("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    assert "Unable to contact slurm controller" in ask_scheduler(["9"]).problem


def test_only_numbers_reach_a_command_line(tools, tmp_path):
    tools("squeue", f'echo "$@" >> {tmp_path}/asked')
    tools("sacct", "exit 1")
    ask_scheduler(["12", "$(touch x)", "--help", "1;2", ""])
    assert "--jobs=12 " in (tmp_path / "asked").read_text()
    (tmp_path / "asked").unlink()
    assert ask_scheduler(["$(touch x)"]).jobs == [] and not (tmp_path / "asked").exists()


def test_settings_of_the_user_do_not_change_the_answers():
    environ = {"SQUEUE_STATES": "PENDING", "SQUEUE_FORMAT": "%i", "SLURM_TIME_FORMAT": "relative",
               "SLURM_CONF": "/etc/x", "HOME": "/h"}  # fmt: skip
    assert tool_environment(environ) == {
        "SLURM_CONF": "/etc/x", "HOME": "/h", "SLURM_TIME_FORMAT": "standard",
    }  # fmt: skip


def test_names_of_jobs_are_never_asked_for():
    """A name may hold whatever tells columns apart."""
    assert "Name" not in " ".join(squeue_command(["1"])) + " ".join(sacct_command(["1"]))
    assert run_tool(["true"]) == ""
