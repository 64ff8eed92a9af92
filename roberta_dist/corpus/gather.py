"""What the parts hold together: the documents within `corpus.max_mib`, and each bucket's, in order."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roberta_dist.corpus.parts import part_name
from roberta_dist.corpus.reading import HELD_OUT, TRAIN, ReadCounts, read_counts
from roberta_dist.corpus.spool import INDEX_DTYPE, read_bucket
from roberta_dist.errors import DataFault
from roberta_dist.units import MIB

BUCKET_DTYPE = np.dtype([*INDEX_DTYPE.descr, ("part", "<u4")])
MAX_OPEN_FILES = 256
EVERY_POSITION = 2**64 - 1


@dataclass(frozen=True)
class Selection:
    """The spooled documents that become the corpus, before duplicates are dropped.

    Attributes:
        folder: of the parts.
        buckets: of each split.
        parts: only the first so many parts are taken.
        last: position of the last document taken.
        counts: of the parts taken; text, train and held_out without what lies beyond.
        beyond: documents of these parts after `corpus.max_mib`.
    """

    folder: Path
    buckets: dict[str, int]
    parts: int
    last: int
    counts: ReadCounts
    beyond: int

    def path(self, part: int) -> Path:
        """Part's files, without suffix."""
        return self.folder / part_name(part)

    def bucket_number(self, split: str, bucket: int) -> int:
        """Number of a split's bucket among those of both."""
        return bucket + (self.buckets[TRAIN] if split == HELD_OUT else 0)


def select(folder: Path, parts: int, buckets: dict[str, int], max_mib: float) -> Selection:
    """Cut the source after `max_mib` of text, in source order; 0 takes everything.

    The document that reaches the limit is the last one taken.
    """
    total = ReadCounts()
    for part in range(parts):
        counts = read_counts(folder / f"{part_name(part)}.json")
        if max_mib and total.text_bytes + counts.text_bytes >= max_mib * MIB:
            taken = Selection(folder, buckets, part + 1, EVERY_POSITION, total + counts, 0)
            return _cut(taken, max_mib * MIB - total.text_bytes)
        total += counts
    return Selection(folder, buckets, parts, EVERY_POSITION, total, 0)


def _cut(taken: Selection, limit: float) -> Selection:
    """Leave out what follows the first `limit` bytes of text of the last part."""
    path = taken.path(taken.parts - 1)
    slots = sum(taken.buckets.values())
    train = taken.buckets[TRAIN]
    pieces = [read_bucket(path, slot, slots) for slot in range(slots)]
    held_out = np.repeat([slot >= train for slot in range(slots)], [len(p) for p in pieces])
    rows = np.concatenate(pieces)
    order = np.argsort(rows["position"])
    rows, held_out = rows[order], held_out[order]
    end = int(np.searchsorted(np.cumsum(rows["length"]), limit)) + 1
    beyond, beyond_held_out = rows[end:], int(held_out[end:].sum())
    counts = replace(
        taken.counts,
        text_bytes=taken.counts.text_bytes - int(beyond["length"].sum()),
        train=taken.counts.train - (len(beyond) - beyond_held_out),
        held_out=taken.counts.held_out - beyond_held_out,
    )
    last = int(rows["position"][end - 1])
    return replace(taken, last=last, counts=counts, beyond=len(beyond))


def bucket_rows(selection: Selection, number: int) -> NDArray[Any]:
    """All documents of a bucket: rows of BUCKET_DTYPE in shuffled order, equal places together and
    in source order."""
    slots = sum(selection.buckets.values())
    pieces = []
    for part in range(selection.parts):
        found = read_bucket(selection.path(part), number, slots)
        rows = np.empty(len(found), dtype=BUCKET_DTYPE)
        for name in INDEX_DTYPE.names or ():
            rows[name] = found[name]
        rows["part"] = part
        pieces.append(rows[found["position"] <= selection.last])
    joined = np.concatenate(pieces)
    return joined[np.lexsort((joined["position"], joined["place_low"], joined["place_high"]))]


def drop_copies(rows: NDArray[Any]) -> NDArray[Any]:
    """Of documents with one place, that is one content, only the first in source order."""
    places = rows[["place_high", "place_low"]]
    return rows[np.append(True, places[1:] != places[:-1])] if len(rows) else rows


def bucket_texts(selection: Selection, rows: NDArray[Any]) -> Iterator[bytes]:
    """The texts of `rows`, UTF-8, one at a time.

    Raises:
        DataFault: a part is shorter than its index says.
    """
    opened: OrderedDict[int, int] = OrderedDict()
    try:
        for part, offset, length in rows[["part", "offset", "length"]].tolist():
            if part not in opened:
                if len(opened) == MAX_OPEN_FILES:
                    os.close(opened.popitem(last=False)[1])
                opened[part] = os.open(selection.path(part).with_suffix(".text"), os.O_RDONLY)
            opened.move_to_end(part)
            text = _read_exactly(opened[part], offset, length)
            if len(text) < length:
                raise DataFault(
                    f"{selection.path(part)}.text: ends before byte {offset + length}, which its "
                    "index names",
                    "remove the .prepare folder of this output, run prepare again",
                )
            yield text
    finally:
        for descriptor in opened.values():
            os.close(descriptor)


def _read_exactly(descriptor: int, offset: int, length: int) -> bytes:
    """The bytes there; fewer only at the end of the file."""
    text = os.pread(descriptor, length, offset)
    while len(text) < length:  # one call gives at most 2 GiB
        more = os.pread(descriptor, length - len(text), offset + len(text))
        if not more:
            break
        text += more
    return text
