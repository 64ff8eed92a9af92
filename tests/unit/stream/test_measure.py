"""Sums of losses add up over batches, ranks and corpora."""

import math

import numpy as np
import pytest
import torch

from roberta_dist.stream.batch import Batch
from roberta_dist.stream.measure import Sums, measure
from roberta_dist.stream.tensors import to_tensors

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")


def batch(masked, labels):
    return Batch(
        tokens_T=np.full(6, 5, np.uint16),
        positions_T=np.tile(np.arange(2, dtype=np.int32), 3),
        cu_seqlens=np.array([0, 2, 4, 6], np.int32),
        max_seqlen=2,
        masked_index_M=np.arange(masked),
        labels_M=np.full(masked, 6, np.uint16),
        row_ids_R=np.array([0, 1, -1]),
        nsp_labels_R=None if labels is None else np.array(labels, np.int8),
    )


def model(masked_index_M, nsp_labels_R=None, **_):
    """2 nats a masked token, 0.5 a pair, every pair told right."""
    loss = torch.tensor(2.0 * len(masked_index_M))
    if nsp_labels_R is None:
        return loss
    assert nsp_labels_R.dtype == torch.int64
    pairs = (nsp_labels_R >= 0).sum().float()
    return torch.stack([loss, 0.5 * pairs, pairs])


def test_labels_reach_the_model_only_where_there_are_pairs():
    assert "nsp_labels_R" not in to_tensors(batch(2, None), CPU)
    assert to_tensors(batch(2, [1, 0, -1]), CPU)["nsp_labels_R"].tolist() == [1, 0, -1]


def test_sums_and_counts_of_pairs():
    batches = [batch(2, [1, 0, -1]), batch(0, [-1, -1, -1]), batch(3, [1, -1, -1])]
    sums = Sums.of(measure(model, batches, CPU))
    assert sums == Sums(mlm=10.0, masked=5, nsp=1.5, pairs=3, correct=3)
    assert (sums.loss, sums.nsp_loss, sums.nsp_accuracy) == (2.0, 0.5, 1.0)
    assert sums + Sums(1.0, 1, 0.5, 1, 0) == Sums(11.0, 6, 2.0, 4, 3)


def test_without_pairs_there_are_no_figures_of_pairs():
    sums = Sums.of(measure(model, [batch(2, None)], CPU))
    assert (sums.loss, sums.nsp_loss, sums.nsp_accuracy) == (2.0, None, None)
    assert Sums().loss == 0.0 and math.isfinite(Sums().loss)
