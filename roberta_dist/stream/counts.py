"""How many blocks each pack holds, for a format and a length.

`packs.npy` carries the counts of the usual lengths; any other is counted once, in parallel and with a
progress bar, and kept beside the manifest under the manifest's hash.
"""

from __future__ import annotations

import io
import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from roberta_dist.config.data import InputFormat
from roberta_dist.corpus.manifest import Manifest
from roberta_dist.corpus.packing import PACKING_VERSION
from roberta_dist.corpus.pool import ordered_map
from roberta_dist.errors import StorageError
from roberta_dist.runtime.files import atomic_write
from roberta_dist.stream.formats import count_blocks
from roberta_dist.stream.packs import PackReader
from roberta_dist.stream.plan import Weights

LOGGER = logging.getLogger(__name__)
JOB_PACKS = 256
"""Packs that one process counts at a time: about a second, so that starting it is worth it."""


@dataclass(frozen=True)
class _Job:
    manifest: Manifest
    input_format: InputFormat
    length: int
    packs: range


def _count(job: _Job) -> list[int]:
    reader = PackReader(job.manifest)
    return [count_blocks(reader.read(i), job.input_format, job.length) for i in job.packs]


def block_counts(
    manifest: Manifest, input_format: InputFormat, length: int, progress: bool = False
) -> NDArray[np.int64]:
    """Blocks of each pack, int64 [packs].

    Raises:
        DataFault: a pack had to be read and is damaged.
    """
    packs = manifest.packs
    column = f"blocks_{length}"
    if input_format is InputFormat.full_sentences and column in (packs.dtype.names or ()):
        return np.asarray(packs[column], dtype=np.int64)
    name = f"{input_format.value}_{length}_{manifest.sha256[:16]}_{PACKING_VERSION}.npy"
    path = manifest.store.derived_folder / "block_counts" / name
    if path.is_file():
        counts = _kept(path, len(packs))
        if counts is not None:
            return counts
        LOGGER.warning("%s: damaged, counted again", path)
    counts = _count_all(manifest, input_format, length, progress)
    buffer = io.BytesIO()
    np.save(buffer, np.append(counts, zlib.crc32(counts.tobytes())), allow_pickle=False)
    try:
        atomic_write(path, buffer.getvalue())
    except StorageError as error:
        LOGGER.warning("block counts are not kept: %s", error)
    return counts


def _kept(path: Path, packs: int) -> NDArray[np.int64] | None:
    """Counts kept in a file, whose last number is their crc32; None where they are not those."""
    try:
        kept = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if kept.shape != (packs + 1,) or kept.dtype != np.int64:
        return None
    counts: NDArray[np.int64] = kept[:-1]
    return counts if zlib.crc32(counts.tobytes()) == kept[-1] else None


def _count_all(
    manifest: Manifest, input_format: InputFormat, length: int, progress: bool
) -> NDArray[np.int64]:
    packs = len(manifest.packs)
    jobs = [
        _Job(manifest, input_format, length, range(first, min(first + JOB_PACKS, packs)))
        for first in range(0, packs, JOB_PACKS)
    ]
    counted: list[int] = []
    label = f"counting rows of {input_format.value}, {length} tokens"
    with tqdm(total=packs, desc=label, unit="pack", disable=not progress) as bar:
        for counts in ordered_map(_count, jobs, workers=0):
            counted += counts
            bar.update(len(counts))
    return np.array(counted, dtype=np.int64)


class BlockCounts:
    """Block counts of several corpora, each read or counted once.

    Args:
        manifests: one a corpus.
        input_format: how packs are cut.
        progress: show a bar where blocks are not counted yet.
    """

    def __init__(
        self, manifests: Sequence[Manifest], input_format: InputFormat, progress: bool
    ) -> None:
        self._manifests = manifests
        self._format = input_format
        self._progress = progress
        self._known: dict[tuple[int, InputFormat, int], NDArray[np.int64]] = {}

    def of(
        self, corpus: int, length: int, input_format: InputFormat | None = None
    ) -> NDArray[np.int64]:
        """Blocks of each pack of a corpus, int64 [packs]."""
        key = (corpus, input_format or self._format, length)
        if key not in self._known:
            manifest = self._manifests[corpus]
            self._known[key] = block_counts(manifest, key[1], length, self._progress)
        return self._known[key]

    def fill(self, length: int, weights: Weights) -> float:
        """Rows of the format that take the place of one `full_sentences` row of the mixture."""
        shares = np.array(weights) / sum(weights)
        return sum(
            float(share)
            * float(self.of(corpus, length).sum())
            / float(self.of(corpus, length, InputFormat.full_sentences).sum())
            for corpus, share in enumerate(shares)
            if share > 0
        )
