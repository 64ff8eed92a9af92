"""What SLURM says of jobs: the questions, how its answers are read, and the one place that asks."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime

from roberta_dist.errors import LaunchError

JOB_ID = re.compile(r"\d+(_\d+)?")
FIELDS = (
    "JobArrayID", "State", "StartTime", "EndTime", "NodeList", "RestartCnt", "exit_code", "Reason",
)  # fmt: skip
"""Of `squeue`; the reason comes last, as it alone is free text. Names of jobs are never asked for."""
WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"})
GOING_ON = frozenset(
    {"RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "STAGE_OUT"}
)  # fmt: skip
PATIENCE_S = 30.0
UNKNOWN_JOB = "Invalid job id"


@dataclass(frozen=True)
class Job:
    """One job, or one part of an array.

    Attributes:
        job_id: `7`, or `7_2` for part 2 of array 7.
        state: as SLURM calls it, such as PENDING or TIMEOUT.
        start: when it began, or is expected to; None where nobody knows.
        end: when it ended, or its time limit is over.
        nodes: that it has, as SLURM abbreviates them.
        restarts: times that it went back into the queue.
        exit_code: `code` or `code:signal`; empty while it runs.
        reason: why it waits or ended.
    """

    job_id: str
    state: str
    start: datetime | None
    end: datetime | None
    nodes: str
    restarts: int
    exit_code: str
    reason: str

    @property
    def waits(self) -> bool:
        """Whether it is in the queue."""
        return self.state in WAITING

    @property
    def goes_on(self) -> bool:
        """Whether it has nodes."""
        return self.state in GOING_ON


@dataclass(frozen=True)
class Answer:
    """What a scheduler told.

    Attributes:
        jobs: those that it still knows.
        problem: why it could not be asked; empty if it was.
    """

    jobs: list[Job] = field(default_factory=list)
    problem: str = ""

    def of(self, job_ids: Iterable[str]) -> list[Job]:
        """Jobs with these numbers, in the order of submission; of an array's number all its parts.

        Each has the number that was asked for.
        """
        wanted = set(job_ids)
        found = []
        for job in sorted(self.jobs, key=lambda job: _order(job.job_id)):
            asked = wanted & {job.job_id, _array(job.job_id)}
            found += [replace(job, job_id=job_id) for job_id in asked]
        return found


def squeue_command(job_ids: Sequence[str]) -> list[str]:
    """Jobs in the queue, and those that ended a few minutes ago."""
    columns = ",".join(f"{name}:|" for name in FIELDS)
    return ["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(job_ids)}", f"--Format={columns}"]  # fmt: skip


def parse_squeue(text: str) -> list[Job]:
    """The lines of `squeue_command`."""
    jobs = []
    for line in text.splitlines():
        parts = line.split("|", len(FIELDS) - 1)
        if len(parts) < len(FIELDS):
            continue
        name, state, start, end, nodes, restarts, code, reason = (part.strip() for part in parts)
        jobs.append(
            Job(
                job_id=name,
                state=state,
                start=_moment(start),
                end=_moment(end),
                nodes=nodes,
                restarts=int(restarts) if restarts.isdigit() else 0,
                exit_code="" if state in WAITING | GOING_ON else _exit_code(code),
                reason=reason.removesuffix("|").strip().removeprefix("None"),
            )
        )
    return jobs


def sacct_command(job_ids: Sequence[str]) -> list[str]:
    """Jobs that the queue has forgotten, where the cluster keeps accounts."""
    return [
        "sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(job_ids)}",
        "--format=JobID,State,Start,End,NodeList,ExitCode,Reason",
    ]  # fmt: skip


def parse_sacct(text: str) -> list[Job]:
    """The lines of `sacct_command`."""
    jobs = []
    for line in text.splitlines():
        parts = line.split("|", 6)
        if len(parts) == 7:
            name, state, start, end, nodes, code, reason = parts
            state = state.partition(" ")[0]  # "CANCELLED by 0"
            moments = (_moment(start), _moment(end))
            jobs.append(Job(name, state, *moments, nodes, 0, code, reason.removeprefix("None")))
    return jobs


def ask_scheduler(job_ids: Sequence[str]) -> Answer:
    """What `squeue`, and for what it has forgotten `sacct`, say of these jobs.

    A scheduler that cannot be asked is a `problem`, no error: the run folder still tells most.
    """
    wanted = sorted({job for job in job_ids if JOB_ID.fullmatch(job)}, key=_order)
    if not wanted:
        return Answer()
    try:
        jobs = parse_squeue(run_tool(squeue_command(wanted)))
    except LaunchError as error:
        return Answer(problem=error.problem)
    known = {name for job in jobs for name in (job.job_id, _array(job.job_id))}
    forgotten = sorted(set(wanted) - known, key=_order)
    if forgotten:
        with suppress(LaunchError):  # most clusters keep accounts; one without has forgotten
            jobs += parse_sacct(run_tool(sacct_command(forgotten)))
    return Answer(jobs)


def run_tool(command: Sequence[str]) -> str:
    """Standard output of one of SLURM's tools; empty if it knows no such job any more.

    Raises:
        LaunchError: the tool is missing, fails, or does not answer in time.
    """
    try:
        done = subprocess.run(
            list(command),
            env=tool_environment(os.environ),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise LaunchError(
            f"{command[0]}: not found on this machine", "run it on a machine of the SLURM cluster"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise LaunchError(f"{command[0]}: no answer in {PATIENCE_S:g} s", "try again") from error
    if done.returncode and UNKNOWN_JOB not in done.stderr:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise LaunchError(f"{command[0]}: {said[-1]}", "see whether the cluster answers")
    return done.stdout


def tool_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Ours without what would filter or reformat the answers."""
    kept = {k: v for k, v in environ.items() if not k.startswith(("SQUEUE_", "SACCT_", "SCANCEL_"))}
    return kept | {"SLURM_TIME_FORMAT": "standard"}


def _array(job_id: str) -> str:
    return job_id.partition("_")[0]


def _order(job_id: str) -> list[int]:
    """By number of the job, then of the part; `7_[3-9]` are parts that wait."""
    return [int(number) for number in re.findall(r"\d+", job_id)[:2]]


def _moment(text: str) -> datetime | None:
    with suppress(ValueError):
        return datetime.fromisoformat(text)
    return None


def _exit_code(text: str) -> str:
    """SLURM 22 prints the status that `wait` gives, later ones `code:signal`."""
    if not text.isdigit():
        return text
    code, signum = int(text) >> 8, int(text) & 0x7F
    return f"{code}:{signum}"
