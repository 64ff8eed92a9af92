"""Worker processes that keep the order of the work and never outlive the one who started them."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from roberta_dist.errors import DataFault

Item = TypeVar("Item")
Result = TypeVar("Result")

POLL_S = 0.5


def worker_count(workers: int) -> int:
    """`corpus.workers`, with 0 read as one a core this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return workers or len(os.sched_getaffinity(0))
    return workers or os.cpu_count() or 1


@contextmanager
def frozen_heap() -> Iterator[None]:
    """Leave what exists now out of garbage collection: walking over the objects of imported
    libraries and vocabularies again and again is a tenth of the work of prepare."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def ordered_map(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, chunk: int = 1
) -> Iterator[Result]:
    """`map(function, items)` over processes, results in order; in this process where one is enough.

    An error of `function` is raised here and ends the workers; so is the death of one, for which
    `multiprocessing.Pool` would wait for ever. Processes are spawned, not forked:
    tokenizers and tqdm have threads, and a forked copy of their locks may never open.
    """
    workers = min(worker_count(workers), -(-len(items) // chunk))
    if workers <= 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),)
    )
    try:
        yield from pool.map(function, items, chunksize=chunk)
    except BrokenProcessPool as error:
        raise DataFault(
            f"a process of {workers} ended without a result (out of memory, or killed)",
            "give fewer corpus.workers, run again: complete shards are kept",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(parent: int) -> None:
    # Ctrl-C reaches the whole process group: the parent alone answers it and ends the pool.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()


def _exit_with(parent: int) -> None:
    """A parent ended by SIGKILL cannot tell its workers, which would wait for work for ever."""
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os._exit(143)
