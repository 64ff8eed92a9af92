"""Joining phase of prepare: which documents are nearly the same as an earlier one.

Documents that share a band of their MinHash are candidates; a candidate pair is believed where the
signatures agree in the share of `corpus.near_duplicate_threshold`. Of what is connected so, the
first document in source order is kept. Memory: a slice of one band, and the pairs that were found.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from roberta_dist.corpus.gather import Selection
from roberta_dist.corpus.minhash import PERMUTATIONS, band_shape
from roberta_dist.corpus.spool import INDEX_DTYPE
from roberta_dist.runtime.files import atomic_write

SLICE_ROWS = 8_000_000
"""Documents of a band that are sorted at once."""
NEIGHBOURS = 32
"""A document is compared with so many after it in a band: enough to connect larger groups."""
PAIRS_AT_ONCE = 65_536
Pairs = NDArray[np.int64]


class _Spooled:
    """The sketches of all parts, documents numbered through."""

    def __init__(self, selection: Selection) -> None:
        slots = sum(selection.buckets.values())
        self._last = selection.last
        self._paths = [selection.path(part) for part in range(selection.parts)]
        self._runs = [
            np.fromfile(path.with_suffix(".runs"), dtype="<u8").reshape(-1, slots + 1)[:, [0, -1]]
            for path in self._paths
        ]
        sizes = [int(runs[-1, 1]) if len(runs) else 0 for runs in self._runs]
        self._ends = np.cumsum(sizes)
        self.documents = int(self._ends[-1])

    def band(self, band: int, bands: int, part_of: int, parts: int) -> tuple[Pairs, Pairs]:
        """Hashes of a band and numbers of the documents, those with hash = part_of mod parts."""
        hashes, numbers = [], []
        for base, path, runs in zip([0, *self._ends], self._paths, self._runs, strict=False):
            for first, end in runs.astype(np.int64).tolist():
                count = end - first
                offset = 8 * (first * bands + band * count)
                found = np.fromfile(path.with_suffix(".bands"), "<u8", count, offset=offset)
                mine = np.flatnonzero(found % np.uint64(parts) == part_of)
                hashes.append(found[mine])
                numbers.append(mine + int(base) + first)
        return np.concatenate(hashes), np.concatenate(numbers)

    def _gather(self, numbers: Pairs, suffix: str, dtype: np.dtype[np.void]) -> NDArray[np.void]:
        found = np.empty(len(numbers), dtype=dtype)
        parts = np.searchsorted(self._ends, numbers, side="right")
        for part in np.unique(parts):
            mine = parts == part
            base = int(self._ends[part - 1]) if part else 0
            stored = np.memmap(self._paths[part].with_suffix(suffix), dtype=dtype, mode="r")
            found[mine] = stored[numbers[mine] - base]
        return found

    def similar(self, pairs: Pairs, threshold: float) -> NDArray[np.bool_]:
        """Whether each of `pairs` [pairs, 2] is to be joined; never one beyond corpus.max_mib."""
        signature = np.dtype([("minima", "<u4", (PERMUTATIONS,))])
        left, right = (self._gather(pairs[:, n], ".signatures", signature) for n in (0, 1))
        agreeing = (left["minima"] == right["minima"]).mean(axis=1) >= threshold
        within: NDArray[np.bool_] = (
            agreeing
            & (self.positions(pairs[:, 0]) <= self._last)
            & (self.positions(pairs[:, 1]) <= self._last)
        )
        return within

    def positions(self, numbers: Pairs) -> NDArray[np.uint64]:
        """Positions in the source."""
        return np.ascontiguousarray(self._gather(numbers, ".index", INDEX_DTYPE)["position"])


def find_near_duplicates(selection: Selection, threshold: float) -> NDArray[np.uint64]:
    """Positions, sorted, of all documents that are nearly the same as an earlier one."""
    spooled = _Spooled(selection)
    bands, _ = band_shape(threshold)
    slices = max(1, -(-spooled.documents // SLICE_ROWS))
    found = [
        pairs[spooled.similar(pairs, threshold)]
        for band in range(bands)
        for number in range(slices)
        for pairs in _candidates(*spooled.band(band, bands, number, slices))
    ]
    pairs = np.unique(np.concatenate(found), axis=0) if found else np.zeros((0, 2), np.int64)
    return _all_but_first(pairs, spooled) if len(pairs) else np.zeros(0, dtype=np.uint64)


def _candidates(hashes: Pairs, numbers: Pairs) -> Iterator[Pairs]:
    """Pairs [pairs, 2] of documents with one hash, some at a time."""
    order = np.argsort(hashes, kind="stable")
    hashes, numbers = hashes[order], numbers[order]
    for distance in range(1, NEIGHBOURS + 1):
        first = np.flatnonzero(hashes[distance:] == hashes[:-distance])
        if len(first) == 0:
            return
        for start in range(0, len(first), PAIRS_AT_ONCE):
            some = first[start : start + PAIRS_AT_ONCE]
            yield np.stack([numbers[some], numbers[some + distance]], axis=1)


def _all_but_first(pairs: Pairs, spooled: _Spooled) -> NDArray[np.uint64]:
    from scipy.sparse import coo_matrix  # a dependency of datasketch, which only this needs
    from scipy.sparse.csgraph import connected_components

    nodes, ends = np.unique(pairs, return_inverse=True)
    left, right = ends.reshape(-1, 2).T
    graph = coo_matrix((np.ones(len(left), bool), (left, right)), shape=(len(nodes), len(nodes)))
    _, component = connected_components(graph, directed=False)
    positions = spooled.positions(nodes)
    order = np.lexsort((positions, component))
    again = np.append(False, component[order][1:] == component[order][:-1])
    return np.sort(positions[order][again])


def write_drops(path: Path, positions: NDArray[np.uint64]) -> None:
    """Write the list of `find_near_duplicates`, whole or not at all."""
    buffer = io.BytesIO()
    np.save(buffer, positions, allow_pickle=False)
    atomic_write(path, buffer.getvalue())


def is_dropped(positions: NDArray[np.uint64], path: Path) -> NDArray[np.bool_]:
    """Whether each of `positions` is in the list at `path`."""
    drops = np.load(path, mmap_mode="r", allow_pickle=False)
    if len(drops) == 0:
        return np.zeros(len(positions), dtype=np.bool_)
    places = np.minimum(np.searchsorted(drops, positions), len(drops) - 1)
    found: NDArray[np.bool_] = drops[places] == positions
    return found
