"""Paths of a run folder, and the folder of one attempt."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from roberta_dist.runtime.files import storage_errors
from roberta_dist.runtime.world import World

ATTEMPT_VARIABLE = "ROBERTA_DIST_ATTEMPT"
"""Set by the launcher, so that every rank writes into the same attempt folder."""

COMPLETE = "COMPLETE"
"""Marker of a checkpoint, written last."""
DAMAGED = "damaged_"
"""Before the name of a checkpoint that a start found damaged and left for a person to look at."""
STARTED_AT = re.compile(r" step=(\d+) ")
"""In a line of attempts.log."""
_STEP = re.compile(r"step_(\d{8})")


@dataclass(frozen=True)
class RunPaths:
    """Where each file of a run lies."""

    root: Path

    @property
    def config_yaml(self) -> Path:
        """The resolved configuration of the newest attempt."""
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.root / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folders step_XXXXXXXX."""
        return self.root / "checkpoints"

    @property
    def logs(self) -> Path:
        """One folder an attempt."""
        return self.root / "logs"

    @property
    def done(self) -> Path:
        """Left when the run is finished."""
        return self.root / "DONE"

    @property
    def requeue(self) -> Path:
        """Left when the run stopped on request and can go on."""
        return self.root / "REQUEUE"

    @property
    def stop(self) -> Path:
        """Left by `stop`: nothing starts this run again by itself; `launch` takes it away."""
        return self.root / "STOP"

    @property
    def jobs(self) -> Path:
        """One JSON object for each launch: kind, host and process or job."""
        return self.root / "jobs.jsonl"

    @property
    def submit(self) -> Path:
        """The job script that was submitted last."""
        return self.root / "submit.sbatch"

    @property
    def slurm(self) -> Path:
        """JOB.out, the log of each job, and submit_NNN/, the script and configuration of each launch."""
        return self.root / "slurm"

    @property
    def attempts_log(self) -> Path:
        """One line an attempt."""
        return self.root / "attempts.log"

    @property
    def skips(self) -> Path:
        """One JSON object for each batch that was left out."""
        return self.root / "skips.jsonl"

    @property
    def environment_json(self) -> Path:
        """Versions and hardware."""
        return self.root / "environment.json"

    @property
    def micro_batch_json(self) -> Path:
        """What `train.micro_batch_size=auto` found, and for what."""
        return self.root / "micro_batch.json"

    @property
    def profile(self) -> Path:
        """One folder a trace that `train.profile` asked for."""
        return self.root / "profile"

    @property
    def upload(self) -> Path:
        """What `report upload=` makes of the metrics."""
        return self.root / "upload"

    @property
    def export(self) -> Path:
        """The Hugging Face folder."""
        return self.root / "export"


def starting_steps(paths: RunPaths) -> list[int]:
    """From which step each attempt of attempts.log went on; 0 for one that began."""
    if not paths.attempts_log.is_file():
        return []
    text = paths.attempts_log.read_text(encoding="utf-8", errors="replace")
    return [int(step) for step in STARTED_AT.findall(text)]


def step_folders(checkpoints: Path) -> list[Path]:
    """Folders that have a checkpoint's name, by step, whether they are whole or not."""
    if not checkpoints.is_dir():
        return []
    return sorted(path for path in checkpoints.iterdir() if _STEP.fullmatch(path.name))


def complete_steps(checkpoints: Path) -> list[int]:
    """Steps with a completion marker, ascending."""
    whole = (path for path in step_folders(checkpoints) if (path / COMPLETE).is_file())
    return [int(path.name.removeprefix("step_")) for path in whole]


def is_done(paths: RunPaths, max_steps: int) -> bool:
    """True if DONE stands for `max_steps`; it does not once they were raised."""
    if not paths.done.is_file():
        return False
    done = json.loads(paths.done.read_text())
    return bool(done["step"] >= max_steps or done["reason"] == "early_stop")


def numbered(parent: Path, prefix: str) -> Path:
    """The folder after the last PREFIXnnn in `parent`; nothing is made."""
    found = [path.name.removeprefix(prefix) for path in parent.glob(f"{prefix}*")]
    last = max((int(number) for number in found if number.isdigit()), default=-1)
    return parent / f"{prefix}{last + 1:03d}"


def next_folder(parent: Path, prefix: str) -> Path:
    """Create and return the folder that `numbered` names.

    Raises:
        StorageError: it cannot be made.
    """
    with storage_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            folder = numbered(parent, prefix)
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                continue  # another process took the number


def next_attempt(paths: RunPaths) -> Path:
    """Create and return logs/attempt_NNN, numbered after the last one.

    Raises:
        StorageError: the run folder cannot be written.
    """
    return next_folder(paths.logs, "attempt_")


def current_attempt(paths: RunPaths, world: World) -> Path:
    """The attempt this worker belongs to.

    Our launcher names it. Without it ranks cannot agree before they have met, so a world of
    several takes the name from what they share: the rendezvous port.
    """
    name = os.environ.get(ATTEMPT_VARIABLE)
    if name is None and world.world_size > 1:
        name = f"port_{os.environ.get('MASTER_PORT', 'unknown')}"
    if name is None:
        return next_attempt(paths)
    folder = paths.logs / name
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder
