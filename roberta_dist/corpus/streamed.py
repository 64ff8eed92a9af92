"""Sources without ranges: whatever webdataset's gopen opens, each file streamed once."""

from __future__ import annotations

import errno
import io
import logging
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

from roberta_dist.corpus.cache import ContentCache, WrongContent
from roberta_dist.corpus.retry import with_retries
from roberta_dist.corpus.storage import Content, Fingerprint, ReadOptions, Store
from roberta_dist.errors import StorageError
from roberta_dist.runtime.remote_path import shown
from roberta_dist.units import MIB, human_bytes

LOGGER = logging.getLogger(__name__)
T = TypeVar("T")
NO_COMMAND = (126, 127)
"""The shell's exit codes for a command that cannot be run or found."""


class NoCommand(ValueError):
    """The command of a `pipe:` does not exist on this machine."""


class StreamedStore(Store):
    """A corpus behind a template: `{}` becomes the name of a file below the corpus folder.

    manifest.json is streamed each time; every other file must be one whose content a manifest
    names, and is streamed once into the verified cache.

    Args:
        template: `pipe:COMMAND`, or a URL of webdataset's gopen.
        options: patience, cache folder and its size.
        prefix: folders between the corpus and this one.
        contents: name → what it must hold.
    """

    def __init__(
        self,
        template: str,
        options: ReadOptions,
        prefix: str = "",
        contents: Mapping[str, Content] | None = None,
    ) -> None:
        self.template = template
        self.options = options
        self.prefix = prefix
        self.cache = ContentCache(options)
        self._contents = dict(contents or {})

    def where(self, name: str = "") -> str:
        """The URL; of a command only its first word, since the rest may hold a secret."""
        path = self.prefix + name
        if self.template.startswith("pipe:"):
            return f"{self.template.split(maxsplit=1)[0]} … {path}"
        return shown(self.template.replace("{}", path))

    def child(self, name: str) -> StreamedStore:
        """The folder `name` below this one."""
        return StreamedStore(self.template, self.options, f"{self.prefix}{name}/")

    def with_contents(self, contents: Mapping[str, Content]) -> StreamedStore:
        """The same folder, once its manifest has said what its files hold."""
        return StreamedStore(self.template, self.options, self.prefix, contents)

    def read_bytes(self, name: str) -> bytes:
        """A whole file, streamed now."""

        def read() -> bytes:
            buffer = io.BytesIO()
            self._stream(name, buffer)
            return buffer.getvalue()

        return self._patiently(read, name)

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """From the copy in the cache."""
        with self._open(name, self._content(name)) as handle:
            handle.seek(offset)
            return handle.read(length)

    def fingerprint(self, name: str, patient: bool = True) -> Fingerprint:
        """Size and hash of the copy, which is made where there is none yet."""
        content = self._content(name)
        with self._open(name, content) as handle:
            return Fingerprint(handle.seek(0, io.SEEK_END), content.sha256)

    def local_path(self, name: str, content: Content) -> Path:
        """The copy in the cache."""
        with self._open(name, content):
            return self.cache.path(content)

    @property
    def derived_folder(self) -> Path:
        """In the cache."""
        return self.options.cache_folder

    def forget(self, name: str) -> None:
        """Remove the copy."""
        self.cache.drop(self._content(name))

    def check_room(self, total_bytes: int) -> bool:
        """Whether all shards can lie in the cache together; says what it costs if not."""
        if total_bytes <= self.options.cache_bytes:
            return True
        LOGGER.warning(
            "%s: shards of %s go through a cache of data.cache_gib=%s: they are streamed again and "
            "again, and are not looked at before the run",
            *(self.where(), human_bytes(total_bytes), self.options.cache_gib),
        )
        return False

    def _content(self, name: str) -> Content:
        if name not in self._contents:
            raise FileNotFoundError(f"{self.where(name)}: no manifest names it")
        return self._contents[name]

    @contextmanager
    def _open(self, name: str, content: Content) -> Iterator[BinaryIO]:
        def fill(handle: BinaryIO) -> None:
            self._patiently(lambda: self._stream(name, handle, content.bytes), name)

        try:
            with self.cache.open(content, fill) as handle:
                yield handle
        except WrongContent as error:
            raise OSError(f"{self.where(name)}: {error}") from None

    def _patiently(self, read: Callable[[], T], name: str) -> T:
        where = self.where(name)
        try:
            return with_retries(read, where, self.options.retry_s)
        except FileNotFoundError:
            raise FileNotFoundError(f"{where}: not there") from None
        except (OSError, NoCommand) as error:
            raise OSError(f"{where}: {error}") from None

    def _stream(self, name: str, target: BinaryIO, size: int = 0) -> None:
        """Write a whole file to the start of `target`.

        Raises:
            OSError: the command or the transfer failed; the text does not repeat the command.
        """
        from webdataset.gopen import Pipe, gopen  # brings torch along

        path = self.prefix + name
        is_command = self.template.startswith("pipe:")
        url = self.template.replace("{}", shlex.quote(path) if is_command else path)
        target.seek(0)
        target.truncate(max(0, size))  # the room it was given stays its own
        source = None
        try:
            source = gopen(url, "rb")
            with closing(source):
                shutil.copyfileobj(source, target, 4 * MIB)
        except FileNotFoundError:
            raise FileNotFoundError("not there") from None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageError(f"{self.cache.folder}: no space left on the disk") from None
            status = source.status if isinstance(source, Pipe) else None
            if status in NO_COMMAND:
                raise NoCommand("no such command") from None
            failed = f"exit code {status}" if status is not None else type(error).__name__
            raise OSError(failed) from None
        target.truncate()
        if target.tell() == 0:
            raise OSError("gave nothing")
