"""The three classes of configuration key (DESIGN §3) and the checks that groups share.

On resume a differing *identity* key stops the run, a *free* key is taken from the new command
and logged in `attempts.log`, an *extendable* key may grow where the schedule allows it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from enum import Enum
from typing import Any

from roberta_dist.errors import ConfigError


class Resume(str, Enum):
    """What happens when a key differs between a run folder and the command that resumes it."""

    identity = "identity"
    free = "free"
    extendable = "extendable"


def _declare(resume: Resume, default: Any) -> Any:
    metadata = {"resume": resume}
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def identity(default: Any) -> Any:
    """A field that decides the result of the run: it may not change on resume."""
    return _declare(Resume.identity, default)


def free(default: Any) -> Any:
    """A field that decides only speed, place or reporting: the new command's value is taken."""
    return _declare(Resume.free, default)


def extendable(default: Any) -> Any:
    """A field that may grow on resume where the schedule does not depend on it."""
    return _declare(Resume.extendable, default)


def group(factory: Callable[[], Any]) -> Any:
    """A nested group of fields."""
    return field(default_factory=factory)


def require(condition: bool, key: str, value: object, rule: str, remedy: str = "") -> None:
    """Raise ConfigError naming `key` and `value` unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{key}={value}: {rule}", remedy)
