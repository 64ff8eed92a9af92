"""Object stores and web servers, read by range through fsspec."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec
from aiohttp import ClientResponseError, ClientTimeout

from roberta_dist.corpus.cache import ContentCache, WrongContent
from roberta_dist.corpus.retry import is_permanent, with_retries
from roberta_dist.corpus.storage import Content, Fingerprint, ReadOptions, Store
from roberta_dist.errors import ConfigError
from roberta_dist.runtime.remote_path import shown
from roberta_dist.units import MIB

T = TypeVar("T")
CONNECT_S = 10.0
SILENCE_S = 60.0
"""Seconds without a byte after which a server counts as gone."""
PASSING_STATUS = (408, 425, 429)
"""Of the 4xx answers, those that a later request may not get."""
REFUSED = (errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.ENAMETOOLONG)
"""What s3fs makes of answers like InvalidRange: the same request will get the same answer."""
BOTOCORE_PERMANENT = (
    "ClientError",
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
)
"""By name: botocore is not installed where only http is read."""
COPY_BYTES = 8 * MIB


class RangeIgnored(ValueError):
    """The server sends whole files where a range is asked for."""


class RangeStore(Store):
    """A folder that is read by range: s3, gs, http.

    Credentials come from where the protocol's library looks for them (environment, ~/.netrc, the
    machine's role), and so does the endpoint of an S3-compatible store (AWS_ENDPOINT_URL).

    Args:
        scheme: protocol.
        url: the folder.
        options: how patiently it is read, and where copies are kept.

    Raises:
        ConfigError: the package that speaks the protocol is not installed.
    """

    def __init__(self, scheme: str, url: str, options: ReadOptions) -> None:
        self.scheme = scheme
        self.url = url.rstrip("/")
        self.options = options
        self.cache = ContentCache(options)
        try:
            self._files: Any = fsspec.filesystem(scheme, **_settings(scheme, options))
        except ImportError as error:
            raise ConfigError(
                f"data.path={shown(url)}: {error}", "install roberta_dist[remote]; gcsfs for gs://"
            ) from error

    def where(self, name: str = "") -> str:
        """The URL."""
        return shown(self._url(name))

    def child(self, name: str) -> RangeStore:
        """The folder `name` below this one."""
        return RangeStore(self.scheme, self._url(name), self.options)

    def read_bytes(self, name: str) -> bytes:
        """A whole file."""
        return self._patiently(lambda: bytes(self._files.cat_file(self._url(name))), name)

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """One range request; a body that ends early is asked for again."""

        def read() -> bytes:
            data = bytes(self._files.cat_file(self._url(name), start=offset, end=offset + length))
            if len(data) > length:
                raise RangeIgnored(
                    f"the server sent {len(data)} bytes for a range of {length}: it ignores Range; "
                    "give data.path with {} to stream each file once"
                )
            if len(data) < length and self._look(name).bytes >= offset + length:
                raise OSError(f"the body ended after {len(data)} of {length} bytes")
            return data

        return self._patiently(read, name)

    def fingerprint(self, name: str, patient: bool = True) -> Fingerprint:
        """Size, and ETag or modification time."""
        return self._patiently(lambda: self._look(name), name, None if patient else 0.0)

    def local_path(self, name: str, content: Content) -> Path:
        """A verified copy in the cache."""

        def fill(handle: BinaryIO) -> None:
            size = self.fingerprint(name).bytes
            handle.seek(0)
            for offset in range(0, size, COPY_BYTES):
                handle.write(self.read_range(name, offset, min(COPY_BYTES, size - offset)))
            handle.truncate()

        try:
            with self.cache.open(content, fill):
                return self.cache.path(content)
        except WrongContent as error:
            raise OSError(f"{self.where(name)}: {error}") from None

    @property
    def derived_folder(self) -> Path:
        """In the cache."""
        return self.options.cache_folder

    def _url(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url

    def _look(self, name: str) -> Fingerprint:
        info = self._files.info(self._url(name))
        versions = (info.get(key) for key in ("ETag", "etag", "LastModified", "Last-Modified"))
        version = next((str(version) for version in versions if version), "")
        size = info.get("size")
        return Fingerprint(-1 if size is None else int(size), version)

    def _patiently(self, read: Callable[[], T], name: str, retry_s: float | None = None) -> T:
        where = self.where(name)
        patience = self.options.retry_s if retry_s is None else retry_s
        try:
            return with_retries(read, where, patience, _is_permanent, _describe)
        except Exception as error:
            raise _translated(error, where) from error


def _settings(scheme: str, options: ReadOptions) -> dict[str, Any]:
    silence = max(1.0, min(SILENCE_S, options.retry_s))
    if scheme in ("http", "https"):
        timeout = ClientTimeout(total=None, connect=CONNECT_S, sock_read=silence)
        client = {"timeout": timeout, "trust_env": True}  # proxies and ~/.netrc
        return {"headers": {"Accept-Encoding": "identity"}, "client_kwargs": client}
    if scheme == "s3":
        retries = {"max_attempts": 1}  # ours are bounded by time, and are logged
        config = {"connect_timeout": CONNECT_S, "read_timeout": silence, "retries": retries}
        return {"config_kwargs": config, "use_listings_cache": False}
    return {"use_listings_cache": False}


def _cause(error: Exception) -> Exception:
    """fsspec's HTTP file system calls every failure to look at a file "not found"."""
    cause = error.__cause__
    return cause if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) else error


def _is_permanent(error: Exception) -> bool:
    cause = _cause(error)
    if isinstance(cause, ClientResponseError):
        return cause.status < 500 and cause.status not in PASSING_STATUS
    if isinstance(cause, OSError) and cause.errno in REFUSED:
        return True
    return is_permanent(cause) or type(cause).__name__ in BOTOCORE_PERMANENT


def _translated(error: Exception, where: str) -> OSError:
    """The OSError of the right kind, with a text that is safe to show."""
    cause = _cause(error)
    status = cause.status if isinstance(cause, ClientResponseError) else None
    missing = isinstance(error, FileNotFoundError) and status is None and _is_permanent(error)
    if missing or status == 404:
        return FileNotFoundError(f"{where}: not there")
    if isinstance(error, PermissionError) or status in (401, 403):
        return PermissionError(f"{where}: {_describe(error)}")
    return OSError(f"{where}: {_describe(error)}")


def _describe(error: Exception) -> str:
    cause = _cause(error)
    if isinstance(cause, ClientResponseError):
        return f"HTTP status {cause.status} {cause.message}"
    return shown(str(cause)) or type(cause).__name__
