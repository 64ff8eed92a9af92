"""A folder of files named by the hash of their content, shared by every process of a machine.

Each file is written once, by whoever holds its lock, is verified and then renamed to its hash.
Locks are the kernel's (flock), so a killed process leaves none behind. Readers hold a shared lock
on the file itself, and only files that nobody holds are removed to make room, the least recently
used first.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from roberta_dist.corpus.storage import Content, ReadOptions
from roberta_dist.errors import ConfigError
from roberta_dist.runtime.files import file_sha256, fsync_folder, storage_errors
from roberta_dist.units import human_bytes

LOGGER = logging.getLogger(__name__)

WAIT_S = 0.05
"""Between looks at a cache whose files are all in use."""


class WrongContent(OSError):
    """What was read is not what the manifest names."""


class ContentCache:
    """Verified copies of remote files.

    Args:
        options: folder, size limit, and how long to wait for room.
    """

    def __init__(self, options: ReadOptions) -> None:
        self.options = options
        self.folder = options.cache_folder / "content"
        self._locks = options.cache_folder / "locks"

    @contextmanager
    def open(self, content: Content, fill: Callable[[BinaryIO], None]) -> Iterator[BinaryIO]:
        """The file that holds `content`, not removed while it is open.

        Args:
            content: what it must hold.
            fill: writes the bytes to a file at its start; called only where they are not there.

        Raises:
            WrongContent: `fill` wrote something else.
            ConfigError: the file does not fit into the cache.
            StorageError: the disk is full or the folder cannot be written.
        """
        path = self.path(content)
        while True:
            try:
                handle = open(path, "rb")  # noqa: SIM115
            except FileNotFoundError:
                self._fill(content, fill)
                continue
            with handle:
                fcntl.flock(handle, fcntl.LOCK_SH)  # unlinked meanwhile: still whole
                with suppress(OSError):
                    os.utime(path)
                yield handle
                return

    def path(self, content: Content) -> Path:
        """Where `content` is kept, if it is."""
        return self.folder / content.sha256

    def drop(self, content: Content) -> None:
        """Remove a file that turned out to be damaged."""
        self.path(content).unlink(missing_ok=True)

    def _fill(self, content: Content, fill: Callable[[BinaryIO], None]) -> None:
        path = self.path(content)
        temporary = path.with_name(f"{path.name}.part")
        with storage_errors(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._locks.mkdir(parents=True, exist_ok=True)
            with _locked(self._locks / content.sha256):
                if path.is_file():
                    return  # another process was first
                # Whoever holds the name's lock owns the .part; what a killed one left is cut.
                with _locked(self._locks / "room"):
                    handle = open(temporary, "w+b")  # noqa: SIM115
                    fcntl.flock(handle, fcntl.LOCK_EX)
                try:
                    with handle:
                        self._reserve(handle, content)
                        _fill_and_verify(handle, content, fill)
                        os.replace(temporary, path)
                except BaseException:
                    temporary.unlink(missing_ok=True)
                    raise
                fsync_folder(self.folder)

    def _reserve(self, handle: BinaryIO, content: Content) -> None:
        """Make room, and let the file count with its full size from now on."""
        needed, limit = max(0, content.bytes), self.options.cache_bytes
        if needed > limit:
            raise ConfigError(
                f"a shard of {human_bytes(needed)} does not fit into the cache: "
                f"data.cache_gib={self.options.cache_gib}",
                "raise data.cache_gib, or prepare the corpus with a smaller corpus.shard_mib",
            )
        deadline = time.monotonic() + max(1.0, self.options.retry_s)
        while True:
            with _locked(self._locks / "room"):
                if self._make_room(limit - needed):
                    handle.truncate(needed)
                    return
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"{self.folder}: no room for {human_bytes(needed)} more, and every file is in "
                    f"use: data.cache_gib={self.options.cache_gib}",
                    "raise data.cache_gib",
                )
            time.sleep(WAIT_S)

    def _make_room(self, allowed: int) -> bool:
        """Remove files until the rest holds at most `allowed` bytes; False where it cannot."""
        files = []
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        used = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if used <= allowed:
                break
            if _remove_unused(path):
                LOGGER.debug("%s: removed to make room", path)
                used -= size
        return used <= allowed


def _fill_and_verify(handle: BinaryIO, content: Content, fill: Callable[[BinaryIO], None]) -> None:
    """Wrong bytes may be the transport's fault once; twice they are the file's."""
    for last in (False, True):
        fill(handle)
        handle.flush()
        os.fsync(handle.fileno())
        found = file_sha256(Path(handle.name))
        if found == content.sha256:
            return
        if last:
            raise WrongContent(
                f"{os.fstat(handle.fileno()).st_size} bytes with sha256 {found[:16]}…, the manifest "
                f"names {content.sha256[:16]}…: replaced or damaged at its source"
            )


def _remove_unused(path: Path) -> bool:
    """Remove `path` unless a process reads or writes it."""
    try:
        with open(path, "rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            return True
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of that name; the file stays, since removing it would let two hold it."""
    with open(path, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
