"""How a run stands: a pure function of its files, the process table and the scheduler's answer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from roberta_dist.config.cluster import ClusterKind
from roberta_dist.errors import INTERRUPTED, LaunchError
from roberta_dist.launcher.outcome import MEANINGS
from roberta_dist.launcher.records import Launch
from roberta_dist.launcher.run_files import RunFiles
from roberta_dist.launcher.scheduler import Answer, Job
from roberta_dist.units import human_duration

FRESH_S = 120.0
"""Files younger than this are those of a run that goes on, where nobody else can be asked."""
ENDINGS = {
    1: "an error that nobody foresaw",
    **MEANINGS,
    LaunchError.exit_code: "the workers ended without a word",
}
"""Exit code that an attempt left → what it says."""


class State(str, Enum):
    """Of a run."""

    not_started = "not started"
    queued = "queued"
    running = "running"
    stopping = "stopping"
    done = "done"
    stopped = "stopped"
    failed = "failed"
    lost = "lost"
    unknown = "unknown"

    @property
    def goes_on(self) -> bool:
        """Whether something of it is still to come without a new launch."""
        return self in (State.queued, State.running, State.stopping)


@dataclass(frozen=True)
class Surroundings:
    """What lies outside the run folder.

    Attributes:
        launcher: process of the newest launch, if it runs on this machine.
        workers: ranks that run on this machine.
        answer: of the scheduler, about the run's jobs.
    """

    launcher: int | None
    workers: list[int]
    answer: Answer


@dataclass(frozen=True)
class Standing:
    """How a run stands.

    Attributes:
        state: in one word.
        detail: why, or where; empty where the word is enough.
        kind: of cluster; `direct` where no launcher of ours started it.
    """

    state: State
    detail: str
    kind: str


def judge(files: RunFiles, around: Surroundings, now: float) -> Standing:
    """Who runs counts first, then what was left behind, and silence last.

    Args:
        files: of the run folder.
        around: what else was found.
        now: seconds since 1970.
    """
    launch = files.launches[-1] if files.launches else None
    kind = launch.kind.value if launch else "direct"
    jobs = around.answer.of(files.roles)
    found = (
        _going_on(files, around, jobs)
        or _ended(files, around.answer.of(files.newest_jobs))
        or _unseen(files, launch, around.answer.problem, now)
    )
    return Standing(*found, kind)


def _going_on(files: RunFiles, around: Surroundings, jobs: list[Job]) -> tuple[State, str] | None:
    alive = State.running if files.asked_to_stop is None else State.stopping
    for job in jobs:
        if job.goes_on:
            left = f", limit at {job.end:%Y-%m-%d %H:%M}" if job.end else ""
            return alive, f"{_name(job, files)} {job.state} on {job.nodes or 'its nodes'}{left}"
    if around.launcher is not None:
        here = files.launches[-1].kind is ClusterKind.local
        idle = ", no worker at the moment" if here and not around.workers else ""
        return alive, f"launcher {around.launcher}{idle}"
    if around.workers:
        return _by_time(files), f"{len(around.workers)} worker(s) on this machine, no launcher"
    for job in jobs:
        if job.waits:
            start = f", expected to start {job.start:%Y-%m-%d %H:%M}" if job.start else ""
            return State.queued, f"{_name(job, files)} waits: {job.reason or job.state}{start}"
    return None


def _ended(files: RunFiles, jobs: list[Job]) -> tuple[State, str] | None:
    if files.done is not None:
        return State.done, f"at step {files.done:,}"
    if files.stopped_at is not None:
        way = f"on request at step {files.stopped_at:,}; `launch` goes on from there"
        return State.stopped, way
    told = files.exit_code
    if told == INTERRUPTED:
        return State.stopped, f"at once; {_way_on(files)}"
    if told is not None:
        return State.failed, f"exit code {told}: {ENDINGS.get(told, 'unknown')}; {_way_on(files)}"
    # of a chain, the first that went wrong says why
    if jobs and (bad := [job for job in jobs if job.state != "COMPLETED"]):
        job, name = bad[0], _name(bad[0], files)
        if job.state.startswith("CANCELLED"):
            return State.stopped, f"{name} was cancelled; {_way_on(files)}"
        if files.asked_to_stop is not None:  # and this is how a job that had not begun ends then
            return State.stopped, f"before {name} began; {_way_on(files)}"
        words = [f"{name} {job.state}", job.exit_code, job.reason]
        return State.failed, f"{' '.join(word for word in words if word)}; {_way_on(files)}"
    return None


def _unseen(files: RunFiles, launch: Launch | None, problem: str, now: float) -> tuple[State, str]:
    """Nothing runs here and nothing tells of an end."""
    if launch is None and not files.attempts:
        return State.not_started, ""
    silent = "nothing written yet"
    if files.written is not None:
        silent = f"nothing written for {human_duration(now - files.written)}"
    elsewhere = launch is not None and not launch.is_here and launch.kind is not ClusterKind.slurm
    if elsewhere and launch is not None:
        problem = f"launched on {launch.host}, whose processes are not seen from here"
    fresh = files.written is not None and now - files.written < FRESH_S
    if fresh and (problem or launch is None):
        why = problem or "its processes are not on this machine"
        return _by_time(files), f"by its files alone; {why}"
    if problem:
        return State.unknown, f"{problem}; {silent}"
    if launch is None:
        return State.lost, f"no worker on this machine; {silent}; {_way_on(files)}"
    if files.asked_to_stop is not None:  # since that launch, which took an older STOP away
        return State.stopped, f"before its workers could save; {_way_on(files)}"
    gone = f"job {launch.job_id}" if launch.job_id else f"launcher {launch.pid}"
    return State.lost, f"{gone} is gone without DONE or REQUEUE; {silent}; {_way_on(files)}"


def _name(job: Job, files: RunFiles) -> str:
    role = files.roles[job.job_id]
    return f"job {job.job_id}" if role == "train" else f"job {job.job_id} ({role})"


def _by_time(files: RunFiles) -> State:
    """Of a run that no `launch` started, which would have taken an old STOP away."""
    asked, began = files.asked_to_stop, files.attempt_began or 0.0
    return State.stopping if asked is not None and asked >= began else State.running


def _way_on(files: RunFiles) -> str:
    if files.checkpoint is None:
        return "`launch` begins again"
    return f"`launch` goes on from step {files.checkpoint[0]:,}"
