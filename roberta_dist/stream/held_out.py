"""Held-out rows: the first ones in file order, with masks that never change."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from roberta_dist.config.data import DataConfig, MaskingConfig
from roberta_dist.config.watch import EvaluateConfig
from roberta_dist.corpus.manifest import Manifest, open_manifest
from roberta_dist.corpus.opening import open_store
from roberta_dist.errors import ConfigError
from roberta_dist.runtime.world import World
from roberta_dist.stream.batch import Batch, block_tokens, make_batch, weightless_row
from roberta_dist.stream.counts import block_counts
from roberta_dist.stream.masking import mask_rule
from roberta_dist.stream.packs import BlockCache, PackReader, check_shards


class HeldOut:
    """The held-out rows of a corpus; every rank runs the same number of batches.

    Args:
        data: corpus, format and length.
        masking: shares; the seed is `evaluate.seed`, never the run's.
        evaluate: rows and batch size.

    Raises:
        ConfigError: the held-out split has no full row.
    """

    def __init__(self, data: DataConfig, masking: MaskingConfig, evaluate: EvaluateConfig) -> None:
        self.manifest: Manifest = open_manifest(open_store(data.path).child("held_out"))
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
                "raise corpus.held_out_fraction, or set evaluate.every_steps=0",
            )
        manifest = self.manifest
        self._rule = mask_rule(
            masking, evaluate.seed, "held_out", manifest.vocab_size, manifest.special_tokens
        )

    def batches(self, world: World) -> Iterator[Batch]:
        """This rank's share, row i going to rank i mod world; gaps are weight-0 rows."""
        special = self.manifest.special_tokens
        reader = PackReader(self.manifest)
        cache = BlockCache(reader, self.data.format, self.data.sequence_length, capacity=2)
        per_rank = -(-self.rows // world.world_size)
        try:
            for start in range(0, per_rank, self.evaluate.batch_size):
                local = np.arange(start, min(start + self.evaluate.batch_size, per_rank))
                row_ids_R = local * world.world_size + world.rank
                row_ids_R = np.where(row_ids_R < self.rows, row_ids_R, -1)
                rows = []
                for row in row_ids_R:
                    if row < 0:
                        rows.append(weightless_row(special))
                        continue
                    pack = int(np.searchsorted(self._ends, row, side="right"))
                    before = int(self._ends[pack - 1]) if pack else 0
                    rows.append(block_tokens(cache.get(pack), int(row) - before, special))
                yield make_batch(rows, row_ids_R, self._rule)
        finally:
            reader.close()
