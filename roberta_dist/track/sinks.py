"""Where metrics go. Every sink has log, flush and close; the tracker is a list of them."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from roberta_dist.config.watch import TrackConfig
from roberta_dist.errors import StorageError
from roberta_dist.runtime.files import storage_errors

Metrics = Mapping[str, float]
LOGGER = logging.getLogger(__name__)


class Sink(Protocol):
    """What a tracker writes to."""

    def log(self, step: int, metrics: Metrics) -> None:
        """Record `metrics` of `step`; may be called more than once a step."""

    def flush(self) -> None:
        """Make what was logged durable."""

    def close(self) -> None:
        """Flush and end."""


class JsonlSink:
    """metrics.jsonl: one JSON object a line, written at once: a kill loses no finished line.

    While the disk takes none they are kept in memory, in order, and tried again with each that follows.

    Raises:
        StorageError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with storage_errors(path):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._waiting = b""
        self._told = False

    def log(self, step: int, metrics: Metrics) -> None:
        """Append one line with the time of day; numbers that are not finite become null."""
        finite = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        line = {"step": step, "time": round(time.time(), 3), **finite}
        self._waiting += json.dumps(line).encode() + b"\n"
        try:
            self._write()
            self._told = False
        except OSError as error:
            if not self._told:
                LOGGER.warning("%s: not written for now (%s); lines are kept", self.path, error)
            self._told = True

    def _write(self) -> None:
        while self._waiting:  # a disk that gets full takes the beginning
            self._waiting = self._waiting[os.write(self._descriptor, self._waiting) :]

    def flush(self) -> None:
        """Write through to the disk.

        Raises:
            StorageError: it takes nothing.
        """
        try:
            self._write()
            os.fsync(self._descriptor)
        except OSError as error:
            raise StorageError(
                f"{self.path}: cannot be written ({error.strerror})", "free space on the disk"
            ) from error

    def close(self) -> None:
        """Flush and close; what the disk does not take even now is lost, and that is said."""
        try:
            self.flush()
        except StorageError as error:
            lines = self._waiting.count(b"\n")
            LOGGER.error("%s; %d lines of metrics are lost", error.problem, lines)
        os.close(self._descriptor)


class TensorboardSink:
    """RUN/tensorboard; a resume hides what an earlier attempt wrote past its step."""

    def __init__(self, folder: Path, resume_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=resume_step + 1)

    def log(self, step: int, metrics: Metrics) -> None:
        """One scalar a metric, training and held-out apart."""
        for name, value in metrics.items():
            group = "held_out" if name.startswith("eval_") else "train"
            self._writer.add_scalar(f"{group}/{name}", value, step)

    def flush(self) -> None:
        """Write events out."""
        self._writer.flush()

    def close(self) -> None:
        """Write events out and close."""
        self._writer.close()


class ProgressSink:
    """A bar on standard error: step, loss, tokens/s, time left, for pairs the share told right.

    A dead terminal is ignored.
    """

    def __init__(self, resume_step: int, total_steps: int) -> None:
        self._bar = tqdm(
            total=total_steps, initial=resume_step, unit="step", file=sys.stderr, dynamic_ncols=True
        )

    def log(self, step: int, metrics: Metrics) -> None:
        """Advance to `step`."""
        with suppress(OSError):
            if "loss" not in metrics:
                return
            shown = {"loss": f"{metrics['loss']:.3f}", "tok/s": f"{metrics['tokens_per_s']:.0f}"}
            if "nsp_accuracy" in metrics:
                shown["nsp"] = f"{metrics['nsp_accuracy']:.0%}"
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(step - self._bar.n)

    def flush(self) -> None:
        """Nothing to keep."""

    def close(self) -> None:
        """Leave the last line."""
        with suppress(OSError):
            self._bar.close()


class Tracker:
    """All sinks of a rank; none on ranks other than 0.

    metrics.jsonl is the source of truth: what cannot be made durable is raised. A dashboard that fails is a
    warning, once, and is left out from then on: no run is worth less than its pictures.
    """

    def __init__(self, required: list[Sink], optional: list[Sink]) -> None:
        self._required = required
        self._optional = optional

    def log(self, step: int, metrics: Metrics) -> None:
        """Record `metrics` of `step` everywhere."""
        for sink in self._required:
            sink.log(step, metrics)
        self._try(lambda sink: sink.log(step, metrics))

    def flush(self) -> None:
        """Make what was logged durable."""
        for sink in self._required:
            sink.flush()
        self._try(lambda sink: sink.flush())

    def close(self) -> None:
        """Close every sink."""
        self._try(lambda sink: sink.close())
        for sink in self._required:
            sink.close()

    def _try(self, action: Callable[[Sink], None]) -> None:
        for sink in list(self._optional):
            try:
                action(sink)
            except Exception as error:
                self._optional.remove(sink)
                LOGGER.warning("%s is left out from now on: %s", type(sink).__name__, error)


def open_tracker(
    config: TrackConfig,
    run_dir: Path,
    resume_step: int,
    total_steps: int,
    is_main: bool,
    hyperparameters: Mapping[str, Any],
) -> Tracker:
    """The sinks that `config` asks for; a rank that is not main gets none."""
    if not is_main:
        return Tracker([], [])
    from roberta_dist.track.wandb_sink import open_wandb

    required: list[Sink] = [JsonlSink(run_dir / "metrics.jsonl")]
    optional: list[Sink] = []
    if config.tensorboard:
        optional.extend(_opened(lambda: TensorboardSink(run_dir / "tensorboard", resume_step)))
    optional.extend(open_wandb(config, run_dir, hyperparameters))
    if config.progress:
        optional.extend(_opened(lambda: ProgressSink(resume_step, total_steps)))
    return Tracker(required, optional)


def _opened(open_sink: Callable[[], Sink]) -> list[Sink]:
    """The sink, or nothing and a warning: a dashboard that cannot start stops no run."""
    try:
        return [open_sink()]
    except Exception as error:
        LOGGER.warning("a dashboard cannot start and is left out: %r", error)
        return []
