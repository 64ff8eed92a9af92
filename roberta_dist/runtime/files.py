"""Files that are either whole or absent: write beside, fsync, rename."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from roberta_dist.errors import StorageError


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make the contents of `path` durable."""
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError about space or permission into a StorageError that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"{path}: no space left on the disk", "free space, run again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise StorageError(
                f"{path}: cannot be written ({error.strerror})",
                "choose a folder this user may write",
            ) from error
        raise


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that appears as `path` only once the block is through: whole or not at all.

    Raises:
        StorageError: the disk is full or the folder cannot be written; `path` is untouched.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with storage_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temporary, path)
            fsync_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write `content` to `path` so that a reader or a crash never sees half of it.

    Raises:
        StorageError: the disk is full or the folder cannot be written; `path` is untouched.
    """
    with atomic_file(path) as handle:
        handle.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Atomic, sorted, indented JSON: equal values give equal bytes."""
    atomic_write(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    hashed = hashlib.sha256()
    with open(path, "rb") as handle:
        while chunk := handle.read(1024 * 1024):
            hashed.update(chunk)
    return hashed.hexdigest()
