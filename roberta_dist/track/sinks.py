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

    Raises:
        StorageError: the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with storage_errors(path):
            self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115

    def log(self, step: int, metrics: Metrics) -> None:
        """Append one line with the time of day; numbers that are not finite become null."""
        finite = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        line = {"step": step, "time": round(time.time(), 3), **finite}
        with storage_errors(self.path):
            self._file.write(json.dumps(line) + "\n")

    def flush(self) -> None:
        """Write through to the disk."""
        with storage_errors(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        self._file.close()


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

    metrics.jsonl is the source of truth, so its errors are raised. A dashboard that fails is a
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
