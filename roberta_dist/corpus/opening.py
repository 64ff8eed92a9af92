"""From a corpus path, as a configuration gives it, to the store that reads it."""

from __future__ import annotations

import re
from pathlib import Path

from roberta_dist.corpus.storage import USER_INFO, LocalStore, ReadOptions, Store, shown
from roberta_dist.corpus.streamed import StreamedStore
from roberta_dist.errors import ConfigError
from roberta_dist.runtime.files import is_remote

RANGE_SCHEMES = ("s3", "gs", "gcs", "http", "https")
_LITERAL_PASSWORD = re.compile(r"://[^/@\s:$'\"]*:[^/@\s$'\"]+@")


def open_store(path: str, options: ReadOptions | None = None) -> Store:
    """The store of a corpus path.

    Raises:
        ConfigError: a path of no known form, one that carries credentials, or a package that
            reads it is not installed.
    """
    options = options or ReadOptions()
    if not is_remote(path):
        return LocalStore(Path(path).expanduser(), options)
    _refuse_credentials(path)
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


def _refuse_credentials(path: str) -> None:
    """Configurations are kept, copied and shown: none may hold a secret."""
    in_url = USER_INFO.search(path) and not path.startswith("pipe:")
    in_query = "?" in path and not path.startswith("pipe:")
    if in_url or in_query or _LITERAL_PASSWORD.search(path):
        raise ConfigError(
            f"data.path={shown(path)}: carries a user name, password or query string, which would "
            "be kept in every copy of the configuration",
            "put them in ~/.netrc (http), in AWS_* variables (s3), or in a variable that a command "
            'names: pipe:curl -sf "https://host/mine/{}?$SIGNATURE"',
        )
