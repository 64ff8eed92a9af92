"""How fast a step was, against what this device can do."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence

import numpy as np
import torch

from roberta_dist.config.model import ModelConfig
from roberta_dist.config.train import Precision
from roberta_dist.plan.flops import training_flops
from roberta_dist.runtime import memory
from roberta_dist.stream.batch import Batch
from roberta_dist.units import MIB


def step_flops(model: ModelConfig, vocab_size: int, batches: Sequence[Batch]) -> int:
    """Useful FLOPs of this rank's micro-batches: real row lengths, masked positions only."""
    return sum(
        training_flops(
            model,
            vocab_size,
            np.diff(batch.cu_seqlens).tolist(),
            len(batch.masked_index_M),
            padded=False,
            next_sentence=batch.nsp_labels_R is not None,
        )
        for batch in batches
    )


DTYPES = {
    Precision.fp32: torch.float32,
    Precision.bf16: torch.bfloat16,
    Precision.fp16: torch.float16,
}
"""What a precision computes in."""


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int = 0) -> float:
    """FLOP/s of a square matrix product measured now: the yardstick of MFU. Best of 9."""
    size = size or (768 if device.type == "cpu" else 8192)
    left = torch.randn(size, size, device=device, dtype=dtype)
    right = torch.randn(size, size, device=device, dtype=dtype)
    times = []
    for _ in range(10):
        began = time.perf_counter()
        product = left @ right
        product[0, 0].item()  # waits for the device
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times[1:])


def memory_mib(device: torch.device) -> float:
    """Peak memory of this rank so far: the accelerator's, or the process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    if (memory.PROC / "self/status").is_file():
        return memory.peak_bytes(device) / MIB
    # Elsewhere than on Linux; there, a process begins with the peak of the one that started it.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
