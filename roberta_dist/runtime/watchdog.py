"""Ends a process that makes no progress, and leaves the stacks of its threads."""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from roberta_dist.errors import HangError

LOGGER = logging.getLogger(__name__)
BACKSTOP_S = 15.0
"""After the timeout, where the interpreter's lock is held and no thread of ours can run."""


class Watchdog:
    """From the first beat to `stop`, two beats may lie `timeout_s` apart.

    A rank that waits in a collective for one that is gone cannot be interrupted from within, so the
    process ends at once, without clean-up; its exit code is `HangError`'s.

    Args:
        timeout_s: seconds; 0 watches nothing.
        stacks: file that gets the stacks of all threads.
        last_words: called before the end, to leave what others look for.
    """

    def __init__(self, timeout_s: float, stacks: Path, last_words: Callable[[], None]) -> None:
        self._timeout_s = timeout_s
        self._stacks = stacks
        self._last_words = last_words
        self._last = 0.0
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def beat(self) -> None:
        """Progress was made."""
        if not self._timeout_s:
            return
        self._last = time.monotonic()
        if self._thread is None:
            self._file = open(self._stacks, "a")  # noqa: SIM115 (the backstop needs it open)
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        faulthandler.dump_traceback_later(self._timeout_s + BACKSTOP_S, exit=True, file=self._file)

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped.set()
        if self._thread is not None:
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        pause = min(1.0, self._timeout_s / 4)
        while not self._stopped.wait(pause):
            silent = time.monotonic() - self._last
            if silent > self._timeout_s:
                self._end(silent)

    def _end(self, silent: float) -> None:
        LOGGER.error(
            "no progress for %.0f s (train.hang_timeout_s=%g): the stacks are in %s",
            *(silent, self._timeout_s, self._stacks),
        )
        self._file.write(f"no progress for {silent:.0f} s\n")
        self._file.flush()
        faulthandler.dump_traceback(file=self._file, all_threads=True)
        self._last_words()
        os._exit(HangError.exit_code)
