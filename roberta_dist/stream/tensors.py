"""A numpy batch as the model's tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from roberta_dist.stream.batch import Batch


def to_tensors(batch: Batch, device: torch.device) -> dict[str, Any]:
    """A batch as the model's keyword arguments.

    The host does not wait for the copies to an accelerator: they leave from pinned memory.
    """

    def moved(array: np.ndarray[Any, Any], dtype: type[np.signedinteger[Any]]) -> Tensor:
        tensor = torch.from_numpy(array.astype(dtype, copy=False))
        if device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(device, non_blocking=True)

    tensors = {
        "tokens_T": moved(batch.tokens_T, np.int64),
        "positions_T": moved(batch.positions_T, np.int64),
        "cu_seqlens": moved(batch.cu_seqlens, np.int32),
        "max_seqlen": batch.max_seqlen,
        "masked_index_M": moved(batch.masked_index_M, np.int64),
        "labels_M": moved(batch.labels_M, np.int64),
    }
    if batch.nsp_labels_R is not None:
        tensors["nsp_labels_R"] = moved(batch.nsp_labels_R, np.int64)
    return tensors


class Upload:
    """Moves batches to a device, on a GPU while the batch before is computed.

    There the copies have a stream of their own, and only the work that is queued after `tensors`
    waits for them. The host, which never waits in between, is ahead of the device.

    Args:
        device: the model's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copying: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def tensors(self, batch: Batch) -> dict[str, Any]:
        """`to_tensors` for what the current stream computes next."""
        if self._copying is None:
            return to_tensors(batch, self._device)
        with torch.cuda.stream(self._copying):
            tensors = to_tensors(batch, self._device)
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._copying)
        for tensor in tensors.values():
            if isinstance(tensor, Tensor):  # not reused by a later copy while it is still read
                tensor.record_stream(computing)
        return tensors
