"""A numpy batch as the model's tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from roberta_dist.stream.batch import Batch


def to_tensors(batch: Batch, device: torch.device) -> dict[str, Any]:
    """A batch as the model's keyword arguments."""

    def moved(array: np.ndarray[Any, Any], dtype: torch.dtype) -> Tensor:
        wide = array.astype(np.int32) if array.dtype == np.uint16 else array
        return torch.from_numpy(wide).to(device, dtype)

    tensors = {
        "tokens_T": moved(batch.tokens_T, torch.int64),
        "positions_T": moved(batch.positions_T, torch.int64),
        "cu_seqlens": moved(batch.cu_seqlens, torch.int32),
        "max_seqlen": batch.max_seqlen,
        "masked_index_M": moved(batch.masked_index_M, torch.int64),
        "labels_M": moved(batch.labels_M, torch.int64),
    }
    if batch.nsp_labels_R is not None:
        tensors["nsp_labels_R"] = moved(batch.nsp_labels_R, torch.int64)
    return tensors
