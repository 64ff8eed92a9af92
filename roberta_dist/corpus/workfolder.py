"""What an unfinished prepare leaves behind, so that the next one can go on.

CORPUS/.prepare/lock         held while a prepare writes here: shared by tasks, or by one alone
CORPUS/.prepare/tasks/       one lock a task of a phase: read-0-of-5
CORPUS/.prepare/state.json   settings and fingerprint of the source it works on
CORPUS/.prepare/parts/       documents by part and bucket; a part is complete once its .json stands
CORPUS/.prepare/drops.npy    near duplicates
CORPUS/.prepare/done/        one result a complete shard
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from roberta_dist.errors import ConfigError
from roberta_dist.runtime.files import atomic_write, storage_errors

WORK_NAME = ".prepare"
WRITTEN = ("tokenizer", "train", "held_out")


@contextmanager
def locked(output: Path, exclusive: bool) -> Iterator[None]:
    """Write in `output`, alone or beside other tasks; the lock ends with the process.

    Raises:
        ConfigError: another prepare writes there, or the folder holds something else.
        StorageError: the folder cannot be written.
    """
    work = output / WORK_NAME
    if not work.is_dir() and not (output / "prepare.json").is_file():
        taken = [name for name in WRITTEN if (output / name).exists()]
        if taken:
            raise ConfigError(
                f"output={output}: holds {', '.join(taken)}, which no prepare of this version left",
                "give another output=, or remove them",
            )
    with _lock(work / "lock", exclusive, f"output={output}: another prepare is writing there"):
        yield


@contextmanager
def task_lock(output: Path, phase: str, task: int, tasks: int) -> Iterator[None]:
    """Keep a second process off the same task of a phase.

    Raises:
        ConfigError: another process does this task.
    """
    name = f"{phase}-{task}-of-{tasks}"
    message = f"output={output}: prepare.phase={phase} prepare.task={task} is running already"
    with _lock(output / WORK_NAME / "tasks" / name, exclusive=True, message=message):
        yield


def tasks_begun(output: Path, phase: str) -> int:
    """`prepare.tasks` of the newest task of `phase` that was begun here; 0 where none was."""
    locks = [*(output / WORK_NAME / "tasks").glob(f"{phase}-*-of-*")]
    newest = max(locks, key=lambda path: path.stat().st_mtime_ns, default=None)
    found = re.search(r"-of-(\d+)$", newest.name) if newest else None
    return int(found.group(1)) if found else 0


@contextmanager
def _lock(path: Path, exclusive: bool, message: str) -> Iterator[None]:
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = open(path, "w")  # noqa: SIM115 - closed by the `with` below
    with handle:
        try:
            fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(message, "wait for it, or give another output=") from error
        except OSError as error:
            # File systems without locks (some parallel ones): go on unprotected.
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
        yield


def begin(output: Path, state: dict[str, Any], may_begin_anew: bool) -> str:
    """Go on with what stands if it was begun with the same `state`, else begin anew.

    Returns:
        Which of both, for the user; empty where nothing stood.

    Raises:
        ConfigError: another state stands there, and this is one task of several.
    """
    path = output / WORK_NAME / "state.json"
    # Through JSON, so that tuples and enums compare as they are stored.
    wanted = json.loads(json.dumps(state))
    if _create(path, wanted):
        return ""
    found = json.loads(path.read_text(encoding="utf-8"))
    if found == wanted:
        return "an unfinished prepare with these settings is continued"
    if not may_begin_anew:
        raise ConfigError(
            f"output={output}: the unfinished prepare here has {_difference(found, wanted)}",
            "give the same settings and source to every task, another output=, or remove "
            f"{output / WORK_NAME}",
        )
    clear(output)
    _create(path, wanted)
    return "the unfinished prepare here had other settings or another source: it is begun anew"


def _create(path: Path, state: dict[str, Any]) -> bool:
    """Write `state` unless a file stands there, whole and by one task only; whether it was this."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    atomic_write(temporary, json.dumps(state, indent=2, sort_keys=True))
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        # File systems without hard links: tasks that begin at once write the same bytes.
        if error.errno not in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        if path.exists():
            return False
        os.replace(temporary, path)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def _difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    old, new = found.get("settings", {}), wanted["settings"]
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if not changed:
        return "another source: files came, went or changed since it was begun"
    return ", ".join(
        f"{key}={old.get(key)} (the command says {new.get(key)})" for key in changed[:3]
    )


def clear(output: Path) -> None:
    """Remove all that an unfinished prepare wrote, but not its lock."""
    work = output / WORK_NAME
    # state.json first: without it nothing else counts.
    (work / "state.json").unlink(missing_ok=True)
    (work / "drops.npy").unlink(missing_ok=True)
    (output / "corpus.html").unlink(missing_ok=True)
    for folder in (work / "parts", work / "done", *(output / name for name in WRITTEN)):
        shutil.rmtree(folder, ignore_errors=True)


def sweep(output: Path) -> None:
    """Remove half-written files that killed processes left in a corpus about to be complete."""
    for folder in (output, *(output / name for name in WRITTEN)):
        for path in folder.glob(".*.tmp-*"):
            path.unlink(missing_ok=True)
