"""Values in the words of a Hydra command line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

PLAIN = re.compile(r"[\w./*-]+", re.ASCII)


def quote_override(key: str, value: str | Sequence[str]) -> str:
    """`key=value` that Hydra's grammar and then a shell leave as it is."""
    if not isinstance(value, str):
        return shlex.quote(f"{key}=[{','.join(map(quote_value, value))}]")
    return shlex.quote(f"{key}={quote_value(value)}")


def quote_value(value: str) -> str:
    """A string as Hydra's grammar takes it literally: in quotes unless it is plain."""
    if "/" in value and PLAIN.fullmatch(value):
        return value
    # a backslash means itself unless a quote or `${` follows
    escaped = re.sub(r"(\\*)('|\$\{|$)", _double_backslashes, value)
    return f"'{escaped}'"


def _double_backslashes(found: re.Match[str]) -> str:
    slashes, mark = found[1] * 2, found[2]
    return f"{slashes}\\{mark}" if mark else slashes
