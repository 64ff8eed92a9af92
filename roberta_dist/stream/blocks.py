"""Blocks of packs as complete rows, with the decoded packs held in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from roberta_dist.config.data import InputFormat
from roberta_dist.corpus.manifest import SpecialTokens
from roberta_dist.corpus.pack import Pack
from roberta_dist.runtime.rng import derive_key
from roberta_dist.stream.batch import weightless_row
from roberta_dist.stream.formats import (
    NO_LABEL,
    PairRows,
    PlainRows,
    draw_pair,
    pair_bits,
    pair_rows,
    plain_rows,
)
from roberta_dist.stream.packs import PackReader
from roberta_dist.stream.rows import Places

READING_THREADS = 8
"""Packs read at once: a range read from an object store is mostly waiting."""
PARTNER_TRIES = 8
PackKey = tuple[int, int, int]
"""Corpus, pack, sequence length."""


class RowMaker:
    """Makes rows, and holds the packs they come from, the least recently used dropped first.

    Args:
        readers: one a corpus; they share a tokenizer.
        input_format: how packs are cut.
        seed: of pair draws; "train" and "held_out" rows take different ones.
        capacity: packs held.

    Attributes:
        reads: packs read so far.
        leave_out: (corpus, pack) that may not give negatives: they are damaged.
    """

    def __init__(
        self, readers: Sequence[PackReader], input_format: InputFormat, seed: int, capacity: int
    ) -> None:
        self.readers = readers
        self.input_format = input_format
        self.special: SpecialTokens = readers[0].manifest.special_tokens
        self.leave_out: frozenset[tuple[str, int]] = frozenset()
        self.capacity = max(2, capacity)
        self.reads = 0
        self._seed = seed
        self._pair_key = derive_key(seed, "pairs")
        self._held: OrderedDict[PackKey, PlainRows | PairRows] = OrderedDict()
        self._pool = ThreadPoolExecutor(READING_THREADS, thread_name_prefix="pack")

    def make(
        self, places: Places, keys_R: NDArray[np.int64], length: int
    ) -> tuple[list[NDArray[np.uint16]], NDArray[np.int8] | None]:
        """Rows, and next-sentence labels in pair formats.

        Args:
            places: where the rows lie; fewer than R where weight-0 rows follow.
            keys_R: what a pair row is drawn by; negative is a weight-0 row, after all real ones.
            length: longest row.

        Raises:
            DataFault: a pack cannot be read or is damaged.
        """
        real = len(places.pack_N)
        wanted = [
            (corpus, pack, length)
            for corpus, pack in zip(places.corpus_N.tolist(), places.pack_N.tolist(), strict=True)
        ]
        self._fetch(wanted)
        blocks = places.block_N.tolist()
        padding = [weightless_row(self.special)] * (len(keys_R) - real)
        if not self.input_format.is_pair:
            packs = {key: self._plain(key) for key in dict.fromkeys(wanted)}
            plain = [packs[key].row(block) for key, block in zip(wanted, blocks, strict=True)]
            return plain + padding, None
        bits = pair_bits(self._pair_key, keys_R[:real])
        pairs = [
            self._pair(key, block, epoch, bits_4)
            for key, block, epoch, bits_4 in zip(
                wanted, blocks, places.epoch_N.tolist(), bits, strict=True
            )
        ]
        labels = [label for _, label in pairs] + [NO_LABEL] * len(padding)
        return [row for row, _ in pairs] + padding, np.array(labels, dtype=np.int8)

    def _pair(
        self, key: PackKey, block: int, epoch: int, bits_4: NDArray[np.uint64]
    ) -> tuple[NDArray[np.uint16], int]:
        rows = self._chunks(key)
        first, last = rows.others(rows.document(block))
        partner = None
        if last - first == len(rows) and (other := self._partner(key, epoch)) is not None:
            partner = self._chunks(other)
        return draw_pair(rows, block, bits_4, partner, self.special)

    def _partner(self, key: PackKey, epoch: int) -> PackKey | None:
        """The pack that gives negatives to a pack of a single document; the same for a whole epoch.

        Document numbers are in the manifest, so a book that goes on in other packs is not taken.
        """
        corpus, pack, length = key
        reader = self.readers[corpus]
        packs = reader.manifest.packs
        document = int(packs[pack]["first_document"])
        for attempt in range(PARTNER_TRIES):
            bits = derive_key(self._seed, "partner", reader.corpus, pack, epoch, attempt)
            number = bits % len(packs)
            other = int(packs[number]["documents"]) > 1
            other |= int(packs[number]["first_document"]) != document
            if other and (reader.corpus, number) not in self.leave_out:
                return corpus, number, length
        return None

    def _plain(self, key: PackKey) -> PlainRows:
        rows = self._get(key)
        assert isinstance(rows, PlainRows)
        return rows

    def _chunks(self, key: PackKey) -> PairRows:
        rows = self._get(key)
        assert isinstance(rows, PairRows)
        return rows

    def _get(self, key: PackKey) -> PlainRows | PairRows:
        if key not in self._held:
            self._hold(key, self._read(key))
        self._held.move_to_end(key)
        return self._held[key]

    def _fetch(self, keys: Iterable[PackKey]) -> None:
        """Read what is missing, several at once; cutting takes turns anyway, so it is done here."""
        missing = [key for key in dict.fromkeys(keys) if key not in self._held]
        if len(missing) > 1:
            for key, pack in zip(missing, self._pool.map(self._read, missing), strict=True):
                self._hold(key, pack)

    def _read(self, key: PackKey) -> Pack:
        corpus, index, _ = key
        return self.readers[corpus].read(index)

    def _hold(self, key: PackKey, pack: Pack) -> None:
        self.reads += 1
        self._held[key] = self._cut(key, pack)
        while len(self._held) > self.capacity:
            self._held.popitem(last=False)

    def _cut(self, key: PackKey, pack: Pack) -> PlainRows | PairRows:
        corpus, index, length = key
        if self.input_format.is_pair:
            first_document = int(self.readers[corpus].manifest.packs[index]["first_document"])
            return pair_rows(pack, self.input_format, length, first_document)
        return plain_rows(pack, self.input_format, length, self.special)

    def close(self) -> None:
        """End the reading threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)
