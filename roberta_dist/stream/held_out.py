"""Held-out rows: the first ones in file order, with masks that never change."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from roberta_dist.config.data import DataConfig, MaskingConfig
from roberta_dist.config.watch import EvaluateConfig
from roberta_dist.corpus.manifest import open_manifest
from roberta_dist.errors import ConfigError
from roberta_dist.runtime.rng import derive_key
from roberta_dist.runtime.world import World
from roberta_dist.stream.batch import Batch, make_batch
from roberta_dist.stream.blocks import RowMaker
from roberta_dist.stream.corpora import open_corpus, open_rule
from roberta_dist.stream.counts import block_counts
from roberta_dist.stream.packs import PackReader, check_shards
from roberta_dist.stream.rows import Places

NOTHING_HELD_OUT = "prepare the corpus with a higher corpus.held_out_fraction, or train with evaluate.every_steps=0"


class HeldOut:
    """The held-out rows of one corpus; every rank runs the same number of batches.

    Args:
        name: of the corpus.
        path: where it lies.
        data: format and length.
        masking: shares; the seed is `evaluate.seed`, never the run's.
        evaluate: rows and batch size.

    Raises:
        ConfigError: no text of the corpus was held out.
    """

    def __init__(
        self,
        name: str,
        path: str,
        data: DataConfig,
        masking: MaskingConfig,
        evaluate: EvaluateConfig,
    ) -> None:
        self.name = name
        try:
            self.manifest = open_manifest(open_corpus(path, data).child("held_out"))
        except ConfigError as error:
            raise ConfigError(error.problem, NOTHING_HELD_OUT) from error
        check_shards(self.manifest)
        self.data = data
        self.evaluate = evaluate
        counts = block_counts(self.manifest, data.format, data.sequence_length)
        self._ends = np.cumsum(counts)
        total = int(self._ends[-1]) if len(counts) else 0
        self.rows = min(total, evaluate.max_rows) if evaluate.max_rows else total
        if self.rows == 0:
            raise ConfigError(
                f"{self.manifest.store.where()}: no row of {data.sequence_length} tokens held out",
                NOTHING_HELD_OUT,
            )
        self._rule = open_rule(masking, evaluate.seed, "held_out", self.manifest, data)

    def batches(self, world: World) -> Iterator[Batch]:
        """This rank's share, row i going to rank i mod world; gaps are weight-0 rows."""
        seed = derive_key(self.evaluate.seed, "held_out")
        maker = RowMaker([PackReader(self.manifest, self.name)], self.data.format, seed, capacity=4)
        per_rank = -(-self.rows // world.world_size)
        try:
            for start in range(0, per_rank, self.evaluate.batch_size):
                local = np.arange(start, min(start + self.evaluate.batch_size, per_rank))
                row_ids_R = local * world.world_size + world.rank
                row_ids_R = np.where(row_ids_R < self.rows, row_ids_R, -1)
                places = self._places(row_ids_R[row_ids_R >= 0])
                rows, labels_R = maker.make(places, row_ids_R, self.data.sequence_length)
                yield make_batch(rows, row_ids_R, self._rule, nsp_labels_R=labels_R)
        finally:
            maker.close()

    def _places(self, rows_N: NDArray[np.int64]) -> Places:
        pack_N = np.searchsorted(self._ends, rows_N, side="right")
        before_N = np.concatenate(([0], self._ends))[pack_N]
        zeros_N = np.zeros_like(rows_N)
        return Places(zeros_N, pack_N, rows_N - before_N, zeros_N)


def open_held_out(
    data: DataConfig, masking: MaskingConfig, evaluate: EvaluateConfig
) -> tuple[HeldOut, ...]:
    """The held-out split of every corpus."""
    return tuple(
        HeldOut(name, path, data, masking, evaluate) for name, path in data.locations.items()
    )
