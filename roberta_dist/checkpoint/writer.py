"""Writing a checkpoint's files: numpy arrays streamed to disk, the marker last.

The safetensors library's own writer keeps the interpreter's lock until all is on disk, so that a
training loop beside it would stand still, and copies what it writes. Here the file is written in
pieces, whose checksum is taken on the way.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roberta_dist.checkpoint.format import (
    CONFIG,
    FORMAT_VERSION,
    INDEX,
    REPLACED,
    SHARDS,
    TRAIN_STATE,
)
from roberta_dist.runtime.files import (
    atomic_write,
    file_sha256,
    fsync_folder,
    storage_errors,
    write_json,
)
from roberta_dist.runtime.rundir import COMPLETE
from roberta_dist.units import MIB

PIECE = 4 * MIB
ALIGNMENT = 8


@dataclass(frozen=True)
class FileSum:
    """What the marker says of a file."""

    bytes: int
    sha256: str


def _header(tensors: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Length and JSON of a safetensors file whose data lies in the order of `tensors`."""
    entries, position = {}, 0
    for name, array in tensors.items():
        offsets = [position, position + array.nbytes]
        entries[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": offsets}
        position += array.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def write_tensors(path: Path, tensors: Mapping[str, NDArray[np.float32]]) -> FileSum:
    """Write a safetensors file of contiguous fp32 arrays and make it durable.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    hashed, size = hashlib.sha256(), 0
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb", buffering=0) as handle:
            views: list[Any] = [array.view(np.uint8).data for array in tensors.values()]
            for view in (memoryview(_header(tensors)), *views):
                for start in range(0, len(view), PIECE):
                    piece = view[start : start + PIECE]
                    hashed.update(piece)
                    while piece:
                        piece = piece[handle.write(piece) :]
                size += len(view)
            os.fsync(handle.fileno())
    return FileSum(size, hashed.hexdigest())


def finish_checkpoint(
    temporary: Path,
    final: Path,
    index: Mapping[str, Any],
    train_state: Mapping[str, Any],
    config_yaml: str,
    shards: Mapping[str, FileSum],
) -> None:
    """Write what all ranks share, the marker last, and give the folder its name.

    Args:
        temporary: holds the shards.
        final: name of the checkpoint; a folder that has it is replaced.
        index: contents of index.json without the format's version.
        train_state: contents of train_state.json.
        config_yaml: of the run.
        shards: file name → its sum.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    write_json(temporary / INDEX, {"format_version": FORMAT_VERSION, **index})
    write_json(temporary / TRAIN_STATE, dict(train_state))
    atomic_write(temporary / CONFIG, config_yaml)
    sums = {name: asdict(entry) for name, entry in shards.items()}
    with storage_errors(temporary):
        fsync_folder(temporary / SHARDS)
        for name in (INDEX, TRAIN_STATE, CONFIG):
            path = temporary / name
            sums[name] = asdict(FileSum(path.stat().st_size, file_sha256(path)))
    write_json(temporary / COMPLETE, {"format_version": FORMAT_VERSION, "files": sums})
    with storage_errors(final):
        replaced = final.with_name(REPLACED + final.name)
        if final.exists():  # by an earlier attempt, or another schedule
            shutil.rmtree(replaced, ignore_errors=True)
            final.rename(replaced)
        temporary.rename(final)
        fsync_folder(final.parent)
        shutil.rmtree(replaced, ignore_errors=True)
