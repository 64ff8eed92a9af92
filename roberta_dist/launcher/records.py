"""RUN/jobs.jsonl: which process or job each launch of a run is."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil

from roberta_dist.config.cluster import ClusterKind
from roberta_dist.launcher.processes import is_alive
from roberta_dist.runtime.rundir import RunPaths

CLOCK_S = 5.0
"""Tolerance between the kernel's clock, which dates processes, and the one of day."""


@dataclass(frozen=True)
class Launch:
    """One line.

    Attributes:
        time: of the launch, seconds since 1970.
        kind: of cluster.
        host: machine on which `launch` ran.
        pid: process of `launch` there; it lasts as long as the run for `local` and `hostfile`.
        job_id: of SLURM; None for other kinds.
        role: what the job is for; `train`, or a part of preparing the corpus.
    """

    time: float
    kind: ClusterKind
    host: str
    pid: int
    job_id: str | None = None
    role: str = "train"

    @property
    def is_here(self) -> bool:
        """Whether it ran on this machine."""
        return self.host == socket.gethostname()


def read_launches(paths: RunPaths) -> list[Launch]:
    """All lines, oldest first; those that a kill or an older version left unreadable are left out."""
    launches = []
    if paths.jobs.is_file():
        for line in paths.jobs.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, KeyError, TypeError):
                launches.append(_parse(json.loads(line)))
    return launches


def _parse(line: dict[str, Any]) -> Launch:
    job_id = line.get("job_id")
    return Launch(
        time=float(line["time"]),
        kind=ClusterKind(line["kind"]),
        host=str(line["host"]),
        pid=int(line["pid"]),
        job_id=None if job_id is None else str(job_id),
        role=str(line.get("role", "train")),
    )


def living_launcher(launch: Launch) -> Any | None:
    """The process of a launch of this machine; None once it is gone.

    A process that was started after the line was written only has the number of one that ended.
    """
    if not launch.is_here:
        return None
    with suppress(psutil.Error):
        process = psutil.Process(launch.pid)
        if is_alive(process) and process.create_time() <= launch.time + CLOCK_S:
            return process
    return None
