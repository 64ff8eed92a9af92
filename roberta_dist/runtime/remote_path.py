"""Corpus paths that are no folder of this machine: what they are, and that they hold no secret."""

from __future__ import annotations

import re

from roberta_dist.errors import ConfigError

_USER_INFO = re.compile(r"(?<=://)[^/@\s'\"]*@")
_QUERY = re.compile(r"(://[^\s?'\"]*)\?[^\s'\")]*")
_LITERAL_PASSWORD = re.compile(r"://[^/@\s:$'\"]*:[^/@\s$'\"]+@")
_LITERAL_QUERY = re.compile(r"://[^\s'\"]*\?[^\s'\"]*=[^\s'\"$&]")


def is_remote(path: str) -> bool:
    """Whether a corpus path is no folder of this machine: a URL, a command, or one with `{}`."""
    return "://" in path or "{}" in path or path.startswith("pipe:")


def shown(text: str) -> str:
    """`text` without the user names, passwords and query strings of the URLs in it."""
    return _QUERY.sub(r"\1", _USER_INFO.sub("", text))


def refuse_secrets(path: str) -> None:
    """Configurations are kept, copied and shown: none may hold a secret.

    Raises:
        ConfigError: a user name, password or query string in `path`; the message does not repeat it.
    """
    in_url = _USER_INFO.search(path) and not path.startswith("pipe:")
    in_query = "?" in path and not path.startswith("pipe:")
    literal = _LITERAL_PASSWORD.search(path) or _LITERAL_QUERY.search(path)
    if in_url or in_query or literal:
        raise ConfigError(
            f"data.path={shown(path)}: carries a user name, password or query string, which would "
            "be kept in every copy of the configuration",
            "put them in ~/.netrc (http), in AWS_* variables (s3), or in a variable that a command "
            'names: pipe:curl -sf "https://host/mine/{}?$SIGNATURE"',
        )
