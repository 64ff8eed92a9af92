"""Packs that a run goes on without: their rows come from substitutes, and no other row moves.

An entry says from which global row on a pack is out. A row's substitute is a pure function of
(seed, the entries with first_row up to that row, row), so rows that were trained before a pack was
found damaged stay what they were, on a replay as well.

Shape legend: N rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roberta_dist.errors import DataFault, PackFault
from roberta_dist.runtime.rng import derive_key

TRIES = 64
"""Hashes tried for a substitute; then the next usable pack in file order is taken."""


@dataclass(frozen=True, order=True)
class Entry:
    """Pack `pack` of `corpus` is not read for global rows `first_row` and later."""

    corpus: str
    pack: int
    first_row: int


@dataclass(frozen=True)
class Quarantine:
    """All entries, sorted, at most one a pack: the same on every rank, kept in the checkpoint."""

    entries: tuple[Entry, ...] = ()

    def to_json(self) -> list[dict[str, Any]]:
        """As the checkpoint's data state keeps it."""
        return [asdict(entry) for entry in self.entries]

    @classmethod
    def from_json(cls, values: Any) -> Quarantine:
        """Read back `to_json`; None, of a checkpoint without one, is empty.

        Raises:
            DataFault: not a list of entries.
        """
        try:
            entries = [Entry(str(v["corpus"]), int(v["pack"]), int(v["first_row"])) for v in values]
        except (KeyError, TypeError, ValueError) as error:
            if values is None:
                return cls()
            raise DataFault(f"the checkpoint's quarantine is damaged ({error!r})") from error
        return cls(_one_a_pack(entries))

    def packs_out(self, row: int) -> frozenset[tuple[str, int]]:
        """(corpus, pack) of what is not read for `row`."""
        return frozenset((e.corpus, e.pack) for e in self.entries if e.first_row <= row)

    def extended(self, faults: Iterable[PackFault], first_row: int, budget: int) -> Quarantine:
        """With the packs of `faults`, gathered from all ranks, out from `first_row` on.

        Args:
            faults: in any order, the same set on every rank.
            first_row: first row of the batch in which they surfaced.
            budget: `data.quarantine_packs`; 0 quarantines nothing.

        Raises:
            DataFault: more packs than the budget allows, each named.
        """
        faults = sorted(faults, key=lambda fault: (fault.corpus, fault.pack))
        new = [Entry(fault.corpus, fault.pack, first_row) for fault in faults]
        entries = _one_a_pack([*self.entries, *new])
        if len(entries) > budget:
            rule = (
                f"{len(entries)} damaged packs, data.quarantine_packs={budget} allows no more\n  "
                if budget
                else ""
            )
            raise DataFault(
                rule + "\n  ".join(fault.problem for fault in faults),
                faults[0].remedy if faults else "restore the shards",
            )
        return Quarantine(entries)

    def apply(
        self,
        seed: int,
        corpora: Sequence[str],
        counts: Sequence[NDArray[np.int64]],
        corpus_N: NDArray[np.int64],
        pack_N: NDArray[np.int64],
        block_N: NDArray[np.int64],
        row_N: NDArray[np.int64],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Packs and blocks with quarantined packs replaced; all other rows are left as they are.

        Args:
            seed: `train.seed`.
            corpora: name of each corpus index.
            counts: blocks of each pack, one array a corpus.
            corpus_N: corpus index of each row.
            pack_N: pack of each row.
            block_N: block of each row.
            row_N: global row; negative ones (weight-0 rows) are left alone.

        Returns:
            (pack_N, block_N); a substitute's block is the row's block modulo its block count.

        Raises:
            DataFault: no pack of a corpus is left.
        """
        pack_N, block_N = pack_N.copy(), block_N.copy()
        original_N = pack_N.copy()
        for entry in self.entries:
            if entry.corpus not in corpora:
                continue
            number = corpora.index(entry.corpus)
            hit_N = (corpus_N == number) & (original_N == entry.pack)
            hit_N &= (row_N >= entry.first_row) & (row_N >= 0)
            for i in np.flatnonzero(hit_N):
                row = int(row_N[i])
                pack = self.substitute(seed, entry.corpus, entry.pack, row, counts[number])
                pack_N[i] = pack
                block_N[i] = block_N[i] % counts[number][pack]
        return pack_N, block_N

    def substitute(
        self, seed: int, corpus: str, pack: int, row: int, counts: NDArray[np.int64]
    ) -> int:
        """The pack read for `row` instead of `pack`.

        The hash of (seed, corpus, pack, try) modulo the packs, tried again while that pack is out
        for this row too, or has no block.

        Raises:
            DataFault: none is left.
        """
        out = {number for name, number in self.packs_out(row) if name == corpus}
        packs = len(counts)
        candidate = 0
        for attempt in range(TRIES):
            candidate = derive_key(seed, "quarantine", corpus, pack, attempt) % packs
            if candidate not in out and counts[candidate] > 0:
                return candidate
        for step in range(1, packs + 1):
            following = (candidate + step) % packs
            if following not in out and counts[following] > 0:
                return following
        raise DataFault(f"{corpus}: all {packs} packs are damaged", "restore the shards")


NOTHING_OUT = Quarantine()
"""No pack is out."""


def _one_a_pack(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Sorted; of several entries of one pack the earliest row counts."""
    first: dict[tuple[str, int], int] = {}
    for entry in entries:
        key = (entry.corpus, entry.pack)
        first[key] = min(entry.first_row, first.get(key, entry.first_row))
    return tuple(sorted(Entry(corpus, pack, row) for (corpus, pack), row in first.items()))
