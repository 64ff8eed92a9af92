"""Synthetic batches ask for as much as any real one."""

from __future__ import annotations

import numpy as np
import pytest

from roberta_dist.config.data import MaskingConfig, MaskSelection, MaskUnit
from roberta_dist.corpus.manifest import SpecialTokens
from roberta_dist.stream.batch import make_batch
from roberta_dist.stream.masking import mask_rule
from roberta_dist.stream.synthetic import empty_batch, full_batch, most_masked

pytestmark = pytest.mark.unit
SPECIAL = SpecialTokens(bos=0, pad=1, eos=2, unk=3, mask=99)


@pytest.mark.parametrize("rows", [1, 2, 32])
def test_no_real_batch_masks_more(rows):
    masking = MaskingConfig(mask_specials=True)
    rule = mask_rule(masking, 1, "train", 100, SPECIAL)
    full = full_batch(rows, 128, masking, 100, pairs=True)
    text = [np.full(128, 5, dtype=np.uint16)] * rows
    masked = [
        len(make_batch(text, np.arange(first, first + rows), rule).masked_index_M)
        for first in range(0, 2000 * rows, rows)
    ]
    assert max(masked) <= len(full.masked_index_M) <= 1.4 * max(masked)


def test_a_full_batch_is_a_batch():
    full = full_batch(3, 16, MaskingConfig(), 100, pairs=True)
    assert full.cu_seqlens.tolist() == [0, 16, 32, 47] and full.max_seqlen == 16
    assert full.positions_T.tolist() == [*range(16), *range(16), *range(15)]
    assert full.tokens_T.max() < 100 and full.labels_M.max() < 100
    assert len(np.unique(full.masked_index_M)) == len(full.labels_M)
    assert full.masked_index_M.max() == len(full.tokens_T) - 1
    assert full.nsp_labels_R.tolist() == [1, 1, 1] and full.row_ids_R.tolist() == [0, 1, 2]
    alone = full_batch(1, 16, MaskingConfig(), 100, pairs=False)
    assert len(alone.tokens_T) == 16 and alone.nsp_labels_R is None


def test_words_vary_more_than_tokens():
    words = MaskingConfig(unit=MaskUnit.whole_word)
    spans = MaskingConfig(unit=MaskUnit.span, selection=MaskSelection.exact)
    tokens = most_masked(4096, MaskingConfig())
    assert 614 < tokens < most_masked(4096, words) == most_masked(4096, spans)
    assert most_masked(4, words) == 4


def test_an_empty_batch_counts_for_nothing():
    empty = empty_batch(SPECIAL, pairs=True)
    assert empty.tokens_T.tolist() == [0, 2] and empty.row_ids_R.tolist() == [-1]
    assert not len(empty.masked_index_M) and empty.nsp_labels_R.tolist() == [-1]
