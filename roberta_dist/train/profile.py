"""`train.profile`: what chosen steps spend their time and memory on, as files beside the run.

RUN/profile/steps_10-12/ holds `trace.json` (open it in ui.perfetto.dev or chrome://tracing) and
`operators.txt`; with `train.profile_memory` also `memory.txt` and, on a GPU, `memory.pickle` (open
it in pytorch.org/memory_viz). The folder appears whole or not at all, and none is ever replaced.
"""

from __future__ import annotations

import logging
import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from roberta_dist.config.train import TrainConfig
from roberta_dist.errors import StorageError
from roberta_dist.runtime.files import fsync_file, fsync_folder, storage_errors

LOGGER = logging.getLogger(__name__)
ROWS = 40
"""Operators in a table."""
NOTE = "A profiler ran: these steps are slower than others. Their lines in metrics.jsonl say profiled=1."


class StepProfiler:
    """Traces the steps of `train.profile` on one rank; costs a comparison a step otherwise.

    As a context it ends a trace that is still being taken when the run stops: half of it would pass
    for the whole. A resumed run traces the steps that are left.

    Args:
        config: says which steps.
        folder: RUN/profile.
        device: the rank's.
        enabled: False on ranks that do not trace.
    """

    def __init__(
        self, config: TrainConfig, folder: Path, device: torch.device, enabled: bool
    ) -> None:
        self._steps = range(*config.profile) if enabled and config.profile else range(0)
        self._memory = config.profile_memory
        self._folder = folder
        self._on_gpu = device.type == "cuda"
        self._first = 0
        self._trace: profile | None = None

    @property
    def columns(self) -> dict[str, float]:
        """What marks the metrics of a traced step."""
        return {"profiled": 1} if self._trace else {}

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around step `number`, counted as metrics.jsonl does."""
        if number not in self._steps:
            yield
            return
        if self._trace is None:
            self._trace, self._first = self._start(), number
        with record_function(f"step {number}"):
            yield

    def done(self, number: int) -> None:
        """Step `number` is through; after the last one to trace, the files are written."""
        if self._trace is not None and number == self._steps[-1]:
            self._write(self._stop(self._trace), number)

    def _start(self) -> profile:
        if self._memory and self._on_gpu:
            torch.cuda.memory._record_memory_history(max_entries=1_000_000)
        gpu = [ProfilerActivity.CUDA] if self._on_gpu else []
        trace = profile(activities=[ProfilerActivity.CPU, *gpu], profile_memory=self._memory)
        trace.start()
        return trace

    def _stop(self, trace: profile) -> profile:
        self._trace = None
        trace.stop()  # waits for the device
        return trace

    def _write(self, trace: profile, last: int) -> None:
        """Leave the folder; a run goes on without it where it cannot be written."""
        name = f"steps_{self._first}-{last}"
        part = self._folder / f".{name}.tmp-{os.getpid()}"
        try:
            with storage_errors(part):
                part.mkdir(parents=True, exist_ok=True)
                self._fill(part, trace, f"Steps {self._first} to {last}. {NOTE}\n\n")
                for path in part.iterdir():
                    fsync_file(path)
                os.rename(part, target := _free_name(self._folder / name))
                fsync_folder(self._folder)
            LOGGER.info("profile of steps %d to %d: %s", self._first, last, target)
        except (StorageError, OSError) as error:
            LOGGER.warning("profile of steps %d to %d is not written: %s", self._first, last, error)
            shutil.rmtree(part, ignore_errors=True)
        finally:
            if self._memory and self._on_gpu:
                torch.cuda.memory._record_memory_history(enabled=None)

    def _fill(self, folder: Path, trace: profile, head: str) -> None:
        trace.export_chrome_trace(str(folder / "trace.json"))
        with open(folder / "trace.json", "rb") as written:  # torch does not tell of a full disk
            written.seek(-min(16, written.seek(0, os.SEEK_END)), os.SEEK_END)
            if not written.read().rstrip().endswith(b"}"):
                raise StorageError(f"{folder / 'trace.json'}: cut short", "free space")
        kind, operators = "device" if self._on_gpu else "cpu", trace.key_averages()
        table = operators.table(sort_by=f"self_{kind}_time_total", row_limit=ROWS)
        (folder / "operators.txt").write_text(head + table)
        if self._memory:
            table = operators.table(sort_by=f"self_{kind}_memory_usage", row_limit=ROWS)
            (folder / "memory.txt").write_text(head + table)
        if self._memory and self._on_gpu:
            snapshot = torch.cuda.memory._snapshot()
            (folder / "memory.pickle").write_bytes(pickle.dumps(snapshot))

    def __enter__(self) -> StepProfiler:
        return self

    def __exit__(self, *_: object) -> None:
        if self._trace is not None:
            self._stop(self._trace)
            LOGGER.warning("the run stopped before the last step of train.profile: no trace of it")


def _free_name(path: Path) -> Path:
    """`path`, or with a number behind it where an earlier attempt left one."""
    names = (path.with_name(f"{path.name}.{number}") if number else path for number in count())
    return next(name for name in names if not name.exists())
