"""Dropping the gradients of a step, and leaving no trace of what was only tried."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR
from typing import Any

import torch
from deepspeed.utils import logger

from roberta_dist.engine.layout import gradient_parts, offloads, zero_stage


def discard_gradient(engine: Any) -> None:
    """Drop the gradients; DeepSpeed's own skip clears its buffers at stages 1 to 3."""
    if zero_stage(engine) == 0:
        engine.zero_grad()
        return
    if offloads(engine):  # the norms of the parts were taken during the backward pass
        norms = engine.optimizer.norm_for_param_grads
        norms |= {key: torch.tensor(math.inf) for key in norms}
    else:
        gradient_parts(engine)[0].view(-1)[:1].fill_(math.inf)
    engine.step()


@contextmanager
def without_trace(engine: Any, device: torch.device) -> Iterator[None]:
    """Run something on a DeepSpeed engine that the next step must not notice.

    Weights and optimizer state are the caller's to leave alone. Afterwards the step, sample and skip
    counters and the random state are the old ones.
    """
    counters = engine.micro_steps, engine.global_steps, engine.global_samples, engine.skipped_steps
    level = logger.level
    logger.setLevel(ERROR)  # its warning of a skipped step would alarm without reason
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        logger.setLevel(level)
        engine.micro_steps, engine.global_steps = counters[:2]
        engine.global_samples, engine.skipped_steps = counters[2:]
