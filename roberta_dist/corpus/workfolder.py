"""What an unfinished prepare leaves behind, so that the next one can go on.

CORPUS/.prepare/lock         held while a prepare writes here
CORPUS/.prepare/state.json   settings and fingerprint of the source it works on
CORPUS/.prepare/spool/       documents by bucket; complete once spool.json stands
CORPUS/.prepare/spool.json   counts of the reading phase
CORPUS/.prepare/done/        one result a complete shard
"""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from roberta_dist.errors import ConfigError
from roberta_dist.runtime.files import storage_errors, write_json

WORK_NAME = ".prepare"
WRITTEN = ("tokenizer", "train", "held_out")


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keep a second prepare out of `output`; the lock ends with the process.

    Raises:
        ConfigError: another prepare writes there, or the folder holds something else.
        StorageError: the folder cannot be written.
    """
    work = output / WORK_NAME
    if not work.is_dir():
        taken = [name for name in WRITTEN if (output / name).exists()]
        if taken:
            raise ConfigError(
                f"output={output}: holds {', '.join(taken)}, which no prepare of this version left",
                "give another output=, or remove them",
            )
    with storage_errors(output):
        work.mkdir(parents=True, exist_ok=True)
        (work / "lock").touch()
    with open(work / "lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"output={output}: another prepare is writing there",
                "wait for it, or give another output=",
            ) from error
        except OSError as error:
            # File systems without locks (some parallel ones): go on unprotected.
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
        yield


def begin(output: Path, state: dict[str, Any]) -> str:
    """Go on with what stands if it was begun with the same `state`, else begin anew.

    Returns:
        Which of both, for the user; empty where nothing stood.
    """
    path = output / WORK_NAME / "state.json"
    # Through JSON, so that tuples and enums compare as they are stored.
    wanted = json.loads(json.dumps(state))
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    if found == wanted:
        return "an unfinished prepare with these settings is continued"
    clear(output)
    write_json(path, wanted)
    if found is None:
        return ""
    return "the unfinished prepare here had other settings or another source: it is begun anew"


def clear(output: Path) -> None:
    """Remove all that an unfinished prepare wrote, but not its lock."""
    work = output / WORK_NAME
    # state.json first: without it nothing else counts.
    (work / "state.json").unlink(missing_ok=True)
    (work / "spool.json").unlink(missing_ok=True)
    (output / "corpus.html").unlink(missing_ok=True)
    for folder in (work / "spool", work / "done", *(output / name for name in WRITTEN)):
        shutil.rmtree(folder, ignore_errors=True)


def sweep(output: Path) -> None:
    """Remove half-written files that killed processes left in a corpus about to be complete."""
    for folder in (output, *(output / name for name in WRITTEN)):
        for path in folder.glob(".*.tmp-*"):
            path.unlink(missing_ok=True)
