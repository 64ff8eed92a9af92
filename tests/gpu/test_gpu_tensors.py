"""Batches on their way to a GPU: whole, beside the work, and without the host waiting."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from roberta_dist.stream.batch import Batch
from roberta_dist.stream.tensors import Upload, to_tensors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]
CUDA = torch.device("cuda", 0)


def batch(seed):
    rng = np.random.default_rng(seed)
    rows, length, masked = 16, 64 + seed, 100 + seed
    tokens = rng.integers(1000, size=rows * length).astype(np.uint16)
    return Batch(
        tokens_T=tokens,
        positions_T=np.tile(np.arange(length, dtype=np.int32), rows),
        cu_seqlens=np.arange(rows + 1, dtype=np.int32) * length,
        max_seqlen=length,
        masked_index_M=np.sort(rng.choice(len(tokens), masked, replace=False)),
        labels_M=rng.integers(1000, size=masked).astype(np.uint16),
        row_ids_R=np.arange(rows),
        nsp_labels_R=rng.integers(-1, 2, size=rows).astype(np.int8),
    )


def test_what_arrives_while_the_gpu_is_busy_is_what_was_sent():
    upload, sums = Upload(CUDA), []
    weights = torch.randn(4096, 4096, device=CUDA)
    batches = [batch(seed) for seed in range(40)]
    upload.tensors(batches[0])  # allocates
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for each in batches:
            tensors = upload.tensors(each)
            for _ in range(4):  # the device lags behind the host
                weights = (weights @ weights).tanh()
            parts = [t.double() for t in tensors.values() if isinstance(t, torch.Tensor)]
            weighted = [p @ torch.arange(len(p), device=CUDA, dtype=p.dtype) for p in parts]
            sums.append(torch.stack(weighted))
            del tensors, parts, weighted  # their memory may be used again
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for each, found in zip(batches, sums, strict=True):
        tensors = to_tensors(each, torch.device("cpu")).values()
        parts = [t.double() for t in tensors if isinstance(t, torch.Tensor)]
        expected = [float(p @ torch.arange(len(p), dtype=p.dtype)) for p in parts]
        assert found.tolist() == expected
