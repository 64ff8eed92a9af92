"""One piece of work on a thread beside the main one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Task(Generic[T]):
    """Runs `work` at once on a thread that does not keep the process alive.

    Args:
        work: what to run.
        name: of the thread.
    """

    def __init__(self, work: Callable[[], T], name: str) -> None:
        self._work = work
        self._result: T
        self.error: BaseException | None = None
        """What ended it."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:  # it is the main thread's to raise
            self.error = error

    @property
    def done(self) -> bool:
        """Whether it ended."""
        return not self._thread.is_alive()

    def wait(self, timeout_s: float | None = None) -> None:
        """Until it ended, or for `timeout_s` seconds."""
        self._thread.join(timeout_s)

    def result(self) -> T:
        """What `work` returned.

        Raises:
            BaseException: what it raised.
        """
        self.wait()
        if self.error is not None:
            raise self.error
        return self._result
