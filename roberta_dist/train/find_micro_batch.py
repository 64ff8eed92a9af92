"""`train.micro_batch_size=auto`: the search on the real engine, and its result in the run folder."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from roberta_dist.config.load import flatten
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.engine.engine import TrainEngine
from roberta_dist.errors import ConfigError
from roberta_dist.runtime.dist import all_max, gather_everywhere, on_main
from roberta_dist.runtime.files import write_json
from roberta_dist.runtime.memory import (
    attainable_bytes,
    held_bytes,
    peak_bytes,
    reset_peak,
    total_bytes,
)
from roberta_dist.runtime.rundir import RunPaths
from roberta_dist.runtime.versions import installed_version
from roberta_dist.stream.batch import Batch
from roberta_dist.stream.loader import micro_batch_rows, most_micro_steps, reader_bytes
from roberta_dist.stream.open import Stream
from roberta_dist.stream.synthetic import empty_batch, full_batch
from roberta_dist.train.micro_batch import Search
from roberta_dist.units import MIB

LOGGER = logging.getLogger(__name__)
MARGIN = 0.1
"""Share of the budget that trials leave alone. The heap may grow by a twentieth between trims
(`runtime.heap.GROWTH`), as an accelerator's blocks fragment; another twentieth is for batches read
ahead, evaluation and whatever else the machine does. Packs, read later, are counted on top."""
GROUPS = ("model", "kernels", "optim", "engine", "masking")
"""Groups of the configuration that memory depends on, as wholes: a key too many costs a search."""
LIBRARIES = ("torch", "deepspeed")


@dataclass(frozen=True)
class Parts:
    """What a search works with.

    Attributes:
        config: of the run.
        stream: of the run.
        engine: with the run's model and optimizer.
    """

    config: PretrainConfig
    stream: Stream
    engine: TrainEngine


def find_micro_batch(parts: Parts) -> int:
    """Rows of a micro-batch at `data.sequence_length`, equal on all ranks; every rank calls this.

    What an earlier attempt found in the same circumstances is taken from RUN/micro_batch.json.

    Raises:
        ConfigError: not one row fits, or memory cannot be measured.
        StorageError: the run folder cannot be written.
    """
    path = RunPaths(Path(parts.config.run_dir)).micro_batch_json
    circumstances = _circumstances(parts)
    key = hashlib.sha256(json.dumps(circumstances, sort_keys=True).encode()).hexdigest()
    kept = on_main(lambda: _kept(path, key))
    if kept is not None:
        LOGGER.info("micro-batch of %d row(s), as found before: %s", kept, path)
        return kept
    rows_per_rank = _rows_per_rank(parts)
    memory = _agreed_memory(parts)
    LOGGER.info(
        "searching the largest micro-batch of up to %d row(s): %d MiB held, a step may take %d MiB (%s)",
        *(rows_per_rank, memory.held // MIB, memory.for_trials // MIB, memory.origin),
    )
    found = Search(
        lambda rows: _trial(parts, rows),
        memory.held,
        memory.for_trials,
        memory.origin,
        rows_per_rank,
    ).run()
    peaks = {str(rows): round(peak / MIB, 1) for rows, peak in found.peaks.items()}
    record = {
        "key": key,
        "micro_batch_size": found.rows,
        "peak_mib": peaks[str(found.rows)],
        "for_trials_mib": round(memory.for_trials / MIB, 1),
        "budget_mib": round(memory.budget / MIB, 1),
        "held_mib": round(memory.held / MIB, 1),
        "trials_mib": peaks,
        "found_for": circumstances,
    }
    on_main(lambda: write_json(path, record))
    LOGGER.info("micro-batch of %d row(s): kept in %s", found.rows, path)
    return found.rows


def _kept(path: Path, key: str) -> int | None:
    try:
        record = json.loads(path.read_text())
        return int(record["micro_batch_size"]) if record["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none, or of another hand: search again


def _circumstances(parts: Parts) -> dict[str, Any]:
    """Everything the result depends on. A derived budget counts by what the device has in all, so
    that a resume need not search again because another process came or went."""
    config, stream, engine = parts.config, parts.stream, parts.engine
    cuda = engine.device.type == "cuda"
    device = torch.cuda.get_device_name(engine.device) if cuda else platform.machine()
    options = flatten(config)
    return {
        "configuration": {
            key: str(value) for key, value in options.items() if key.split(".")[0] in GROUPS
        },
        "memory_budget_mib": config.train.memory_budget_mib,
        "deterministic": config.train.deterministic,
        "sequence_lengths": {
            str(length): rows for length, rows in sorted(_rows_by_length(parts).items())
        },
        "base_length": config.data.sequence_length,
        "pairs": config.data.format.is_pair,
        "vocabulary": stream.manifest.vocab_size,
        "world": engine.world.world_size,
        "ranks_here": _ranks_here(),
        "device": f"{engine.device.type} {device}, {total_bytes(engine.device) // MIB} MiB",
        "libraries": {name: installed_version(name) for name in LIBRARIES},
    }


def _ranks_here() -> int:
    """Ranks of this machine, by its name: not every launcher counts them for us."""
    name = socket.gethostname()
    return gather_everywhere(name).count(name)


def _rows_by_length(parts: Parts) -> dict[int, int]:
    """Sequence length → most rows that a rank has of a global batch of it."""
    most: dict[int, int] = {}
    for segment in parts.stream.plan.segments:
        rows = -(-segment.rows // parts.engine.world.world_size)
        most[segment.sequence_length] = max(rows, most.get(segment.sequence_length, 0))
    return most


def _rows_per_rank(parts: Parts) -> int:
    """The same of the batch with the most tokens, in rows of `data.sequence_length`."""
    base = parts.config.data.sequence_length
    return max(-(-rows * length // base) for length, rows in _rows_by_length(parts).items())


@dataclass(frozen=True)
class Memory:
    """What the ranks agree on, bytes.

    Attributes:
        held: before the search, the most of any rank.
        budget: what a rank may come to hold, the least of any rank.
        for_trials: of that, what a step of the search may take.
        origin: of the budget, in words.
    """

    held: int
    budget: int
    for_trials: int
    origin: str


def _agreed_memory(parts: Parts) -> Memory:
    device, given = parts.engine.device, parts.config.train.memory_budget_mib
    here = _ranks_here()  # a collective: from here on every rank has its engine
    held = held_bytes(device)
    budget = given * MIB or attainable_bytes(device, here)
    packs = reader_bytes(parts.stream, parts.engine.world) if device.type == "cpu" else 0
    agreed = all_max(torch.tensor([held, -budget, packs], device=device)).tolist()
    held, budget, packs = int(agreed[0]), -int(agreed[1]), int(agreed[2])
    origin = f"train.memory_budget_mib={given}" if given else f"{budget // MIB} MiB can be had"
    origin += f", less {MARGIN:.0%} and {packs // MIB} MiB of packs"
    return Memory(held, budget, max(0, int((1 - MARGIN) * budget) - packs), origin)


def _trial(parts: Parts, rows: int) -> int:
    """Peak bytes, the most of any rank, of a step with micro-batches of `rows`.

    A second round of micro-batches meets the gradients that the first one left, as in a real step.

    Raises:
        ConfigError: an accelerator is out of memory, against what smaller trials let expect.
    """
    engine, device = parts.engine, parts.engine.device
    batches = _batches(parts, rows)
    if most_micro_steps(parts.stream, engine.world, max(1, rows)) > 1:
        batches = [*batches, *batches]
    reset_peak(device)
    try:
        engine.probe(batches)
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(rows, error) from error
    return int(all_max(torch.tensor(peak_bytes(device), device=device)).item())


def _batches(parts: Parts, rows: int) -> list[Batch]:
    """A full micro-batch of each sequence length; 0 rows are an empty one."""
    data, manifest = parts.config.data, parts.stream.manifest
    pairs = data.format.is_pair
    if not rows:
        return [empty_batch(manifest.special_tokens, pairs)]
    return [
        full_batch(
            min(most, micro_batch_rows(parts.stream, rows, length)),
            length,
            parts.config.masking,
            manifest.vocab_size,
            pairs,
        )
        for length, most in sorted(_rows_by_length(parts).items())
    ]


def _out_of_memory(rows: int, error: torch.OutOfMemoryError) -> ConfigError:
    """The attempt ends: ranks are apart, and DeepSpeed's buckets are half full."""
    return ConfigError(
        f"train.micro_batch_size=auto: {rows} row(s) are out of memory ({str(error).splitlines()[0]})",
        "give train.memory_budget_mib less than the device has free; if this was one row: a higher "
        "engine.stage, more ranks, engine.offload=cpu or a shorter data.sequence_length",
    )
