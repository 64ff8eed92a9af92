"""From a corpus path, as a configuration gives it, to the store that reads it."""

from __future__ import annotations

from pathlib import Path

from roberta_dist.corpus.storage import LocalStore, ReadOptions, Store
from roberta_dist.corpus.streamed import StreamedStore
from roberta_dist.errors import ConfigError
from roberta_dist.runtime.remote_path import is_remote, refuse_secrets, shown

RANGE_SCHEMES = ("s3", "gs", "gcs", "http", "https")


def open_store(path: str, options: ReadOptions | None = None) -> Store:
    """The store of a corpus path.

    Raises:
        ConfigError: a path of no known form, one that carries credentials, or a package that
            reads it is not installed.
    """
    options = options or ReadOptions()
    if not is_remote(path):
        return LocalStore(Path(path).expanduser(), options)
    refuse_secrets(path)
    if "{}" in path:
        return StreamedStore(path, options)
    scheme = path.partition("://")[0].lower()
    if scheme not in RANGE_SCHEMES:
        raise ConfigError(
            f"data.path={shown(path)}: cannot be read by range, and has no {{}}",
            f"give a folder, {'://, '.join(RANGE_SCHEMES)}://, or mark with {{}} where the name of "
            "a file goes: pipe:ssh host cat /corpora/mine/{}",
        )
    from roberta_dist.corpus.remote import RangeStore  # fsspec and aiohttp: only where needed

    return RangeStore(scheme, path, options)
