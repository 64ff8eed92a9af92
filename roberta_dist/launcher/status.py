"""`status`: how runs stand, from their files, the process table and the scheduler."""

from __future__ import annotations

import glob
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from roberta_dist.config.operate import StatusConfig
from roberta_dist.errors import ConfigError
from roberta_dist.launcher.records import living_launcher
from roberta_dist.launcher.run_files import RunFiles, is_run, read_run_files
from roberta_dist.launcher.scheduler import Answer, ask_scheduler
from roberta_dist.launcher.standing import Surroundings, judge
from roberta_dist.launcher.status_text import Report, as_json, as_page, as_table
from roberta_dist.launcher.workers import Worker, find_workers, workers_of
from roberta_dist.runtime.rundir import RunPaths


def status(config: StatusConfig) -> int:
    """Print how one run stands, or a table over many.

    Raises:
        ConfigError: there is no run.
    """
    while True:
        if config.run_dir is not None:
            folders, others = [Path(config.run_dir).expanduser()], 0
        else:
            folders, others = find_runs(config.run_dirs)
        text = _describe(look(folders), config, others)
        if not config.watch_s:
            print(text)
            return 0
        clear = "\033[H\033[2J" if sys.stdout.isatty() else ""
        print(f"{clear}{time.strftime('%H:%M:%S')}\n{text}", flush=True)
        time.sleep(config.watch_s)


def look(folders: Sequence[Path]) -> list[Report]:
    """How these runs stand: one look at the process table and one question for all of them.

    Raises:
        ConfigError: one of them is no run.
    """
    runs = [read_run_files(folder) for folder in folders]
    workers = find_workers()
    answer = ask_scheduler([job for files in runs for job in files.roles])
    now = time.time()
    return [
        Report(
            files, judge(files, around(files, workers, answer), now), answer.of(files.roles), now
        )
        for files in runs
    ]


def going_on(paths: RunPaths) -> list[str]:
    """What proves that a run goes on: its jobs, a launcher or workers on this machine.

    Files that were written a moment ago prove nothing.
    """
    if not is_run(paths.root):
        return []
    files = read_run_files(paths.root)
    jobs = ask_scheduler(list(files.roles)).of(files.roles)
    proofs = [
        f"job {job.job_id} of this run is {job.state}" for job in jobs if job.waits or job.goes_on
    ]
    for launch in files.launches:
        launcher = None if launch.job_id else living_launcher(launch)
        if launcher is not None and launcher.pid != os.getpid():
            proofs.append(f"a launch of this run goes on, process {launcher.pid}")
    workers = workers_of(paths.root).values()
    proofs += [f"a worker of this run goes on, process {process.pid}" for process in workers]
    return list(dict.fromkeys(proofs))


def around(files: RunFiles, workers: Sequence[Worker], answer: Answer) -> Surroundings:
    """What concerns one run of what was found outside its folder."""
    launcher = living_launcher(files.launches[-1]) if files.launches else None
    root = files.root.resolve()
    return Surroundings(
        # a job's launcher ended once it had submitted it
        launcher=launcher.pid if launcher is not None and not files.launches[-1].job_id else None,
        workers=[worker.rank for worker in workers if worker.belongs_to(root)],
        answer=answer if files.roles else Answer(),
    )


def find_runs(patterns: Sequence[str]) -> tuple[list[Path], int]:
    """Run folders that match, by name, and how many other things do.

    Raises:
        ConfigError: no run matches.
    """
    matched: set[Path] = set()
    for pattern in (str(Path(p).expanduser()) for p in patterns):
        # a folder whose name holds [ or * is meant by its name
        found = [pattern] if Path(pattern).exists() else glob.glob(pattern)
        matched.update(Path(path) for path in found)
    runs = sorted(path for path in matched if _readable(path))
    if not runs:
        raise ConfigError(
            f"run_dirs={list(patterns)}: no run among {len(matched)} thing(s) there",
            "give folders that `launch` was given, or a pattern such as 'run_dirs=[runs/*]'",
        )
    return runs, len(matched) - len(runs)


def _readable(path: Path) -> bool:
    with suppress(OSError):
        return is_run(path)
    return False


def _describe(reports: Sequence[Report], config: StatusConfig, others: int) -> str:
    if config.json:
        return "\n".join(as_json(report) for report in reports)
    if config.run_dir is not None:
        return "\n".join(as_page(report) for report in reports)
    left_out = f"\n{others} other thing(s) there are no runs" if others else ""
    return as_table(reports) + left_out
