"""Where a corpus lies and how its bytes are read: a folder, an object store, or a command.

`data.path` is one of

    /corpora/mine                         a local folder, read with pread
    s3://bucket/mine, gs://, https://     read by range (remote.py)
    pipe:ssh host cat /corpora/mine/{}    `{}` stands for a file of the corpus: each is streamed
                                          once into a verified cache (streamed.py)

Stores raise FileNotFoundError, PermissionError or another OSError whose text is safe to show: no
user name, password or query string of a URL is part of it.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from roberta_dist.corpus.retry import with_retries
from roberta_dist.runtime.files import file_sha256
from roberta_dist.units import GIB

T = TypeVar("T")


@dataclass(frozen=True)
class ReadOptions:
    """How a corpus is read; nothing here changes what is read.

    Attributes:
        retry_s: seconds a read that fails for a passing reason is tried again.
        cache_dir: folder for streamed shards and derived files; None is roberta_dist in the
            user's cache folder.
        cache_gib: GiB of streamed shards kept there.
    """

    retry_s: float = 120.0
    cache_dir: str | None = None
    cache_gib: float = 50.0

    @property
    def cache_folder(self) -> Path:
        """`cache_dir`, or the default."""
        if self.cache_dir is not None:
            return Path(self.cache_dir).expanduser()
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(base).expanduser() / "roberta_dist"

    @property
    def cache_bytes(self) -> int:
        """`cache_gib` in bytes."""
        return int(self.cache_gib * GIB)


@dataclass(frozen=True)
class Fingerprint:
    """What tells a file from another of the same name.

    Attributes:
        bytes: size; -1 where the protocol does not say.
        version: ETag, modification time or content hash; empty where there is none.
    """

    bytes: int
    version: str


@dataclass(frozen=True)
class Content:
    """What a file must hold, as a manifest names it; `bytes` is -1 where it does not say."""

    sha256: str
    bytes: int = -1


class Store(ABC):
    """A folder of named files. Safe to use from several threads.

    Attributes:
        folder: the folder itself where it is local, else None.
    """

    folder: Path | None = None

    @abstractmethod
    def where(self, name: str = "") -> str:
        """The place of `name`, for messages: without credentials."""

    @abstractmethod
    def child(self, name: str) -> Store:
        """The folder `name` below this one."""

    @abstractmethod
    def read_bytes(self, name: str) -> bytes:
        """A whole file, as it is now.

        Raises:
            OSError: missing, forbidden, or not readable within `retry_s`.
        """

    @abstractmethod
    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`; fewer only where the file ends before.

        Raises:
            OSError: missing, forbidden, or not readable within `retry_s`.
        """

    @abstractmethod
    def fingerprint(self, name: str, patient: bool = True) -> Fingerprint:
        """Size and version of a file as it is now.

        Args:
            name: the file.
            patient: try again for `retry_s`; False asks once.

        Raises:
            OSError: missing, forbidden, or not reachable within `retry_s`.
        """

    @abstractmethod
    def local_path(self, name: str, content: Content) -> Path:
        """A file of this machine that holds `content`: the file itself, or a copy in the cache.

        Raises:
            OSError: it cannot be read, or holds something else.
        """

    @property
    @abstractmethod
    def derived_folder(self) -> Path:
        """Where files that are computed from this folder may be kept."""

    def with_contents(self, contents: Mapping[str, Content]) -> Store:
        """The same folder, with what its files must hold where reading depends on it."""
        return self

    def forget(self, name: str) -> None:
        """Drop what is kept of `name`, so that the next read asks the source again."""
        return None

    def check_room(self, total_bytes: int) -> bool:
        """Whether `total_bytes` of shards can be looked at one by one before a run."""
        return True


class LocalStore(Store):
    """A folder of this machine, or of a file system it has mounted.

    Files are opened for each read: ten thousand shards need no ten thousand descriptors.
    """

    def __init__(self, folder: Path, options: ReadOptions | None = None) -> None:
        self.folder: Path = folder
        self.options = options or ReadOptions()

    def where(self, name: str = "") -> str:
        """The path."""
        return str(self.folder / name)

    def child(self, name: str) -> LocalStore:
        """The folder `name` below this one."""
        return LocalStore(self.folder / name, self.options)

    def read_bytes(self, name: str) -> bytes:
        """A whole file."""
        return self._patiently((self.folder / name).read_bytes, name)

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """One `pread`."""

        def read() -> bytes:
            descriptor = os.open(self.folder / name, os.O_RDONLY)
            try:
                return os.pread(descriptor, length, offset)
            finally:
                os.close(descriptor)

        return self._patiently(read, name)

    def fingerprint(self, name: str, patient: bool = True) -> Fingerprint:
        """Size, inode and modification time."""
        look = (self.folder / name).stat
        status = self._patiently(look, name) if patient else look()
        return Fingerprint(status.st_size, f"{status.st_ino}-{status.st_mtime_ns}")

    def local_path(self, name: str, content: Content) -> Path:
        """The file itself, once its hash is checked."""
        path = self.folder / name
        if self._patiently(lambda: file_sha256(path), name) != content.sha256:
            raise OSError(f"{path}: not the file that the manifest names")
        return path

    @property
    def derived_folder(self) -> Path:
        """The folder itself."""
        return self.folder

    def _patiently(self, read: Callable[[], T], name: str) -> T:
        return with_retries(read, self.where(name), self.options.retry_s)
