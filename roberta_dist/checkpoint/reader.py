"""Reading checkpoints: numpy and safetensors, no torch, no deepspeed, no pickle."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from roberta_dist.checkpoint.format import (
    CONFIG,
    FORMAT_VERSION,
    INDEX,
    TRAIN_STATE,
    WEIGHT,
    FragmentEntry,
    fragment_key,
    step_folder,
)
from roberta_dist.errors import ConfigError, DataFault
from roberta_dist.runtime.files import file_sha256
from roberta_dist.runtime.rundir import COMPLETE, complete_steps


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint's index.

    Attributes:
        folder: `.../checkpoints/step_XXXXXXXX`.
        step: updates done.
        kinds: what is stored for each parameter: "weight" and optimizer states.
        shapes: shape of each parameter.
        fragments: ranges of each parameter, by start.
        train_state: the contents of train_state.json.
    """

    folder: Path
    step: int
    kinds: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    fragments: dict[str, list[FragmentEntry]]
    train_state: dict[str, Any]

    @property
    def config_yaml(self) -> Path:
        """The configuration of the run that wrote it."""
        return self.folder / CONFIG


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The newest complete checkpoint of a run, derived from the folders alone."""
    steps = complete_steps(run_dir / "checkpoints")
    return step_folder(run_dir / "checkpoints", steps[-1]) if steps else None


def find_checkpoint(run_dir: Path, step: int | None) -> Path:
    """The checkpoint of `step`, or the newest.

    Raises:
        ConfigError: there is none; names those that are there.
    """
    steps = complete_steps(run_dir / "checkpoints")
    if not steps or (step is not None and step not in steps):
        wanted = (
            "a complete checkpoint" if step is None else f"a complete checkpoint of step {step}"
        )
        raise ConfigError(
            f"{run_dir}: has no {wanted} (complete: {steps or 'none'})",
            "give another step=, or train further",
        )
    return step_folder(run_dir / "checkpoints", steps[-1] if step is None else step)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataFault(f"{path}: cannot be read ({error})", "use an earlier checkpoint") from error


def _recorded(folder: Path) -> dict[str, tuple[int, str]]:
    """What the marker says: file name → bytes, sha256."""
    path = folder / COMPLETE
    if not path.is_file():
        raise DataFault(f"{folder}: has no {COMPLETE} marker", "use an earlier checkpoint")
    marker = _read_json(path)
    try:
        files = marker["files"].items()
        return {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataFault(
            f"{path}: is no marker ({error!r} is amiss)", "use an earlier checkpoint"
        ) from error


def verify(folder: Path, files: Iterable[str] | None = None) -> None:
    """Compare files with the marker's sizes and sha256.

    Args:
        folder: the checkpoint.
        files: relative names to check; all of them by default.

    Raises:
        DataFault: a file, or the marker, is missing, has another size or other bytes, or a name leaves
            the folder.
    """
    recorded = _recorded(folder)
    for name in sorted(recorded) if files is None else files:
        if name not in recorded:
            raise DataFault(
                f"{folder / COMPLETE}: says nothing of {name}", "use an earlier checkpoint"
            )
        path, (size, sha256) = folder / name, recorded[name]
        if Path(name).is_absolute() or ".." in Path(name).parts or path.is_symlink():
            raise DataFault(f"{folder / COMPLETE}: names {name}, outside the checkpoint")
        found = path.stat().st_size if path.is_file() else "missing"
        if found != size:
            raise DataFault(
                f"{path}: {found}, {COMPLETE} says {size} bytes", "use an earlier checkpoint"
            )
        try:
            found_sha256 = file_sha256(path)
        except OSError as error:
            raise DataFault(
                f"{path}: cannot be read ({error})", "use an earlier checkpoint"
            ) from error
        if found_sha256 != sha256:
            raise DataFault(
                f"{path}: sha256 differs from {COMPLETE}'s", "use an earlier checkpoint"
            )


def recorded_files(folder: Path) -> list[str]:
    """Names in the marker, sorted."""
    return sorted(_recorded(folder))


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read and check the index; tensor data is not touched.

    Raises:
        DataFault: damaged, or fragments that leave gaps.
        ConfigError: of another format version: nothing is wrong with it.
    """
    verify(folder, [INDEX, TRAIN_STATE, CONFIG])
    index = _read_json(folder / INDEX)
    if index.get("format_version") != FORMAT_VERSION:
        raise ConfigError(
            f"{folder}: format_version={index.get('format_version')}, "
            f"this version reads {FORMAT_VERSION}",
            "read it with the version that wrote it",
        )
    fragments: dict[str, list[FragmentEntry]] = {name: [] for name in index["shapes"]}
    known = set(recorded_files(folder))
    for entry in (FragmentEntry(**values) for values in index["fragments"]):
        if entry.file not in known:
            raise DataFault(f"{folder / INDEX}: names {entry.file}, which {COMPLETE} does not")
        fragments[entry.name].append(entry)
    shapes = {name: tuple(shape) for name, shape in index["shapes"].items()}
    for name, entries in fragments.items():
        entries.sort(key=lambda entry: entry.start)
        position = 0
        for entry in entries:
            if entry.start != position:
                raise DataFault(f"{folder}: {name} has a gap or an overlap at element {position}")
            position += entry.length
        if position != int(np.prod(shapes[name])):
            raise DataFault(f"{folder}: {name} has {position} elements, shape {shapes[name]}")
    return Checkpoint(
        folder=folder,
        step=index["step"],
        kinds=tuple(index["kinds"]),
        shapes=shapes,
        fragments=fragments,
        train_state=_read_json(folder / TRAIN_STATE),
    )


class FragmentReader:
    """Reads ranges of parameters, each file opened once."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._open: dict[str, Any] = {}

    def read(self, kind: str, name: str, start: int, length: int) -> NDArray[np.float32]:
        """Elements [start, start + length) of `kind` of parameter `name`, flattened.

        Raises:
            DataFault: not in the checkpoint, or a file is not safetensors.
        """
        if name not in self.checkpoint.fragments or kind not in self.checkpoint.kinds:
            raise DataFault(f"{self.checkpoint.folder}: has no {kind} of {name}")
        out = np.empty(length, dtype=np.float32)
        for entry in self.checkpoint.fragments[name]:
            first = max(start, entry.start)
            last = min(start + length, entry.start + entry.length)
            if first < last:
                key = fragment_key(kind, name, entry.start)
                part = self._file(entry.file).get_slice(key)
                out[first - start : last - start] = part[first - entry.start : last - entry.start]
        return out

    def _file(self, name: str) -> Any:
        if name not in self._open:
            path = self.checkpoint.folder / name
            try:
                self._open[name] = safe_open(path, framework="np")
            except (SafetensorError, OSError) as error:
                raise DataFault(f"{path}: not a safetensors file ({error})") from error
        return self._open[name]


def load_weights(folder: Path) -> dict[str, NDArray[np.float32]]:
    """The fp32 weights of a checkpoint, whole, after checking every file."""
    verify(folder)
    checkpoint = open_checkpoint(folder)
    reader = FragmentReader(checkpoint)
    return {
        name: reader.read(WEIGHT, name, 0, int(np.prod(shape))).reshape(shape)
        for name, shape in checkpoint.shapes.items()
    }
