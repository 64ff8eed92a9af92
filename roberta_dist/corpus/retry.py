"""Trying again what failed for a passing reason: exponential back-off with jitter, bounded."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from roberta_dist.errors import RobertaDistError

LOGGER = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
PERMANENT = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    ImportError,
    ValueError,
    TypeError,
    RobertaDistError,
)
"""What no waiting repairs, whatever is read."""

T = TypeVar("T")


def is_permanent(error: Exception) -> bool:
    """Whether trying again is useless."""
    return isinstance(error, PERMANENT)


def with_retries(
    read: Callable[[], T],
    where: str,
    retry_s: float,
    permanent: Callable[[Exception], bool] = is_permanent,
    describe: Callable[[Exception], str] = str,
) -> T:
    """The result of `read`, called again until it succeeds or `retry_s` after the first failure.

    Args:
        read: one attempt.
        where: what is read, for the log.
        retry_s: seconds.
        permanent: errors that are not tried again.
        describe: an error's text, safe to show.

    Raises:
        Exception: of the last attempt.
    """
    failed_first: float | None = None
    attempt = 0
    while True:
        try:
            return read()
        except Exception as error:
            now = time.monotonic()
            failed_first = now if failed_first is None else failed_first
            pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt) * random.uniform(0.5, 1.0)
            attempt = min(attempt + 1, 20)
            left = retry_s - (now - failed_first)
            if permanent(error) or pause > left:
                raise
            LOGGER.warning(
                "%s: %s: %s; next try in %.1f s, for %.0f s more",
                *(where, type(error).__name__, describe(error), pause, left),
            )
            time.sleep(pause)
