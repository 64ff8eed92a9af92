"""`launch --multirun`: many runs by one command; on SLURM as job arrays, elsewhere one after the other."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os.path import commonpath
from pathlib import Path

from roberta_dist.config.cluster import ClusterKind
from roberta_dist.config.quoting import quote_override
from roberta_dist.config.roots import LaunchConfig, PretrainConfig
from roberta_dist.errors import INTERRUPTED, ConfigError, RobertaDistError
from roberta_dist.launcher.launch import launch, ready
from roberta_dist.launcher.sbatch import directives
from roberta_dist.launcher.slurm import (
    dependency,
    job_of,
    jobs_in_chain,
    launch_slurm,
    make_mounted,
    paths_and_template,
    write_chain,
    write_submission,
)
from roberta_dist.launcher.start import record_launch, say
from roberta_dist.launcher.submit import all_or_none, test_only
from roberta_dist.runtime.files import atomic_write
from roberta_dist.runtime.rundir import RunPaths, is_done, next_folder, numbered

UNSAFE = re.compile(r"[^\w.,=+@-]+")


def launch_sweep(members: Mapping[str, LaunchConfig]) -> int:
    """Start or resume all members; those that are done already are left out.

    Args:
        members: each by its swept part, `optim.lr=0.001,seed=2`.

    Returns:
        0, or the largest exit code; one run that failed does not keep the others from theirs.

    Raises:
        ConfigError: members share a folder, differ in cluster.kind, or lack a corpus; nothing was started.
    """
    placed = place(members)
    kinds = {config.cluster.kind for config in placed}
    if len(kinds) > 1:
        raise ConfigError(
            f"cluster.kind: {sorted(kinds)} in one sweep", "launch one sweep for each"
        )
    if any(config.prepare_first for config in placed):
        raise ConfigError(
            "prepare_first: every member of a sweep would prepare the corpus",
            "prepare it once: `roberta-dist prepare`, or a launch of one run",
        )
    runs = [(config, run) for config in placed if (run := ready(config)) is not None]
    if kinds != {ClusterKind.slurm}:
        return _one_by_one([config for config, _ in runs])
    arrays = alike([run for _, run in runs])
    if any(config.dry_run for config, _ in runs):
        trials = [_trial(array) for array in arrays]
        print("\n".join(f"# sbatch {' '.join(t.options)}\n{t.script}" for t in trials), flush=True)
        for trial in trials if shutil.which("sbatch") else ():
            say(test_only(trial.script, *trial.options))
        return 0
    for array in arrays:
        if len(array) == 1:
            launch_slurm(array[0], [])
        else:
            _submit_array(array)
    return 0


def place(members: Mapping[str, LaunchConfig]) -> list[LaunchConfig]:
    """The members, each with a folder of its own: below run_dir where all have the same.

    Raises:
        ConfigError: some share a folder, others do not.
    """
    folders = {config.run_dir for config in members.values()}
    placed = list(members.values())
    if len(folders) == 1:
        placed = [
            replace(config, run_dir=f"{config.run_dir}/{UNSAFE.sub('_', name).lstrip('+')}")
            for name, config in members.items()
        ]
        folders = {config.run_dir for config in placed}
    if len(folders) < len(placed):
        raise ConfigError(
            f"run_dir: {len(placed)} members of the sweep have {len(folders)} folders",
            "give one run_dir for all; each member gets a folder below it",
        )
    return placed


def _one_by_one(members: Sequence[LaunchConfig]) -> int:
    codes = [0]
    for number, config in enumerate(members, 1):
        say(f"{number} of {len(members)}: {config.run_dir}")
        try:
            code = launch(config)
        except RobertaDistError as error:
            say(f"{config.run_dir}: {error}")
            code = error.exit_code
        codes.append(code)
        if config.dry_run or config.train.dry_run:
            continue
        finished = is_done(RunPaths(Path(config.run_dir).expanduser()), config.schedule.max_steps)
        if code == INTERRUPTED or (code == 0 and not finished):
            say(f"{config.run_dir}: stopped, and so the sweep; the same command goes on with it")
            break
    return max(codes)


def alike(runs: Sequence[PretrainConfig]) -> list[list[PretrainConfig]]:
    """Runs that ask the cluster for the same, together: an array asks once."""
    arrays: dict[tuple[str, ...], list[PretrainConfig]] = {}
    for run in runs:
        asked = _directives(run, Path("/"))
        arrays.setdefault((*asked, str(run.cluster.slurm.chain)), []).append(run)
    return list(arrays.values())


def _directives(run: PretrainConfig, folder: Path) -> list[str]:
    """Those of an array in whose folder the run is."""
    return directives(replace(run, run_dir=str(folder)), job_of(run, folder))


@dataclass(frozen=True)
class Array:
    """A job array.

    Attributes:
        folder: of the sweep; SLURM's own lines about each part go to slurm/JOB.out there.
        script: text for sbatch.
        options: what sbatch is told beside the script.
    """

    folder: Path
    script: str
    options: list[str]


def array_of(runs: Sequence[PretrainConfig], scripts: Sequence[Path]) -> Array:
    """The array whose part N runs `scripts[N]`, which lies in slurm/submit_NNN of its run.

    Args:
        runs: that ask for the same.
        scripts: a job script for each.
    """
    folder = Path(commonpath([Path(run.run_dir).parent for run in runs]))
    lines = [
        "#!/bin/bash",
        *_directives(runs[0], folder),
        "",
        "scripts=(",
        *(f"    {shlex.quote(str(script))}" for script in scripts),
        ")",
        "script=${scripts[SLURM_ARRAY_TASK_ID]}",
        "log=${script%/*/*}/${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID.out",
        'exec bash "$script" >>"$log" 2>&1',
    ]
    at_once = runs[0].cluster.slurm.sweep_at_once
    limit = f"%{at_once}" if at_once else ""
    return Array(folder, "\n".join(lines) + "\n", [f"--array=0-{len(runs) - 1}{limit}"])


def _trial(runs: Sequence[PretrainConfig]) -> Array:
    """The array as it would be submitted."""
    folders = [numbered(RunPaths(Path(run.run_dir)).slurm, "submit_") for run in runs]
    return array_of(runs, [folder / "submit.sbatch" for folder in folders])


def _submit_array(runs: Sequence[PretrainConfig]) -> None:
    found = [paths_and_template(run) for run in runs]
    trial = _trial(runs)
    test_only(trial.script, *trial.options)
    submissions = []
    for run, (paths, template) in zip(runs, found, strict=True):
        make_mounted(run)
        submissions.append(write_submission(run, paths, template))
    array = array_of(runs, [submission / "submit.sbatch" for submission in submissions])
    script = next_folder(array.folder / "slurm", "sweep_") / "sweep.sbatch"
    atomic_write(script, array.script)
    with all_or_none() as submit:
        jobs: list[str] = []
        for _ in range(jobs_in_chain(runs[0])):
            jobs.append(submit(script, *array.options, *dependency(ended=jobs[-1:])))
            for part, (paths, _) in enumerate(found):
                own = f"{jobs[-1]}_{part}"
                record_launch(paths, ClusterKind.slurm, job_id=own, role="train")
                say(f"{paths.root}: job {own}, log {paths.slurm / own}.out")
        for part, submission in enumerate(submissions):
            write_chain(submission, [f"{job}_{part}" for job in jobs])
    say(f"  look:  roberta-dist status {quote_override('run_dirs', [f'{array.folder}/*'])}")
