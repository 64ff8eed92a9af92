"""One optimizer step over DeepSpeed, exact in masked tokens.

The gradient of a step is that of Σ CE over masked tokens ÷ the global count of masked tokens.
DeepSpeed averages over ranks, so a micro-batch's loss is Σ CE · world / count, and its own division
by the accumulation steps is switched off.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from roberta_dist.checkpoint.reader import Checkpoint
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.engine.guards import is_finite
from roberta_dist.engine.layout import gradient_parts, zero_stage
from roberta_dist.engine.save import ensure_optimizer_state, load_checkpoint, save_checkpoint
from roberta_dist.engine.setup import initialize
from roberta_dist.runtime.dist import all_sum
from roberta_dist.runtime.heap import HeapTrimmer
from roberta_dist.runtime.rng import derive_key
from roberta_dist.runtime.world import World
from roberta_dist.stream.batch import Batch
from roberta_dist.stream.tensors import to_tensors


@dataclass(frozen=True)
class StepResult:
    """What one step did, equal on every rank but for the times.

    Attributes:
        loss: Σ CE / masked tokens of the global batch, nats; nan when nothing was masked.
        masked_tokens: predicted positions of the global batch.
        tokens: tokens of the global batch.
        grad_norm: global gradient norm before clipping.
        applied: the weights moved.
        compute_s, optimizer_s: seconds of forward, backward and reduction; of the update.
    """

    loss: float
    masked_tokens: int
    tokens: int
    grad_norm: float
    applied: bool
    compute_s: float
    optimizer_s: float


class TrainEngine:
    """DeepSpeed behind the few verbs the loop needs."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        config: PretrainConfig,
        world: World,
        device: torch.device,
        micro_steps: int,
    ) -> None:
        self.world = world
        self.device = device
        self.seed = config.train.seed
        self._heap = HeapTrimmer(enabled=device.type == "cpu")
        self.engine = initialize(model, optimizer, config, micro_steps, device)
        ensure_optimizer_state(self.engine, 0)

    def train_step(self, batches: Sequence[Batch], step: int, lr: float) -> StepResult:
        """Forward, backward and update for one global batch.

        The update is not applied when nothing was masked or a number is not finite.
        """
        began = time.perf_counter()
        counts = all_sum(self._counts(batches))
        masked, tokens = int(counts[0]), int(counts[1])
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        if masked:
            for micro_step, batch in enumerate(batches):
                loss_sum += self._micro_step(batch, step, micro_step, len(batches), masked)
                self._heap.check()
        loss, grad_norm = self._agree(loss_sum, masked)
        computed = time.perf_counter()
        applied = masked > 0 and is_finite(loss, grad_norm)
        if applied:
            self._apply(lr)
        elif masked:
            self._discard()
        done = time.perf_counter()
        return StepResult(
            loss, masked, tokens, grad_norm, applied, computed - began, done - computed
        )

    def _counts(self, batches: Sequence[Batch]) -> Tensor:
        masked = sum(len(batch.masked_index_M) for batch in batches)
        real = sum(int(np.diff(batch.cu_seqlens)[batch.row_ids_R >= 0].sum()) for batch in batches)
        return torch.tensor([masked, real], dtype=torch.int64, device=self.device)

    def _micro_step(
        self, batch: Batch, step: int, micro_step: int, micro_steps: int, masked: int
    ) -> Tensor:
        torch.manual_seed(derive_key(self.seed, "dropout", step, micro_step, self.world.rank) >> 1)
        self.engine.set_gradient_accumulation_boundary(micro_step == micro_steps - 1)
        loss: Tensor = self.engine(**to_tensors(batch, self.device))
        # The product is a new tensor on purpose: DeepSpeed 0.19.8 divides by the accumulation steps
        # when backward() gets the very tensor that forward() returned (BF16_Optimizer, stage 0).
        self.engine.backward(loss * (self.world.world_size / masked), scale_wrt_gas=False)
        return loss.detach().double()

    def _agree(self, loss_sum: Tensor, masked: int) -> tuple[float, float]:
        """Global loss and gradient norm: one all-reduce of two numbers."""
        if not masked:
            return float("nan"), 0.0
        parts = gradient_parts(self.engine)
        squares = [part.detach().float().norm().double().square() for part in parts]
        square = torch.stack(squares).sum() if squares else torch.zeros_like(loss_sum)
        if zero_stage(self.engine) == 0:  # every rank holds all of it
            square = square / self.world.world_size
        both = all_sum(torch.stack([loss_sum, square]))
        return float(both[0]) / masked, float(both[1].sqrt())

    def _apply(self, lr: float) -> None:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        skipped = self.engine.skipped_steps
        self.engine.step()
        if self.engine.skipped_steps != skipped:
            raise AssertionError("DeepSpeed skipped an update that the guard had passed")

    def _discard(self) -> None:
        """Drop the gradients; DeepSpeed's own skip clears its buffers at stages 1 to 3."""
        if zero_stage(self.engine) == 0:
            self.engine.zero_grad()
            return
        parts = gradient_parts(self.engine)
        parts[0].view(-1)[:1].fill_(float("inf"))
        self.engine.step()

    @torch.no_grad()
    def held_out_sums(self, batches: Sequence[Batch] | Any) -> tuple[float, int]:
        """Σ CE and masked tokens over all ranks' held-out batches, without dropout."""
        self.engine.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch in batches:
            sums[0] += self.engine(**to_tensors(batch, self.device)).double()
            sums[1] += len(batch.masked_index_M)
        self.engine.train()
        all_sum(sums)
        return float(sums[0]), int(sums[1])

    def save(
        self, checkpoints: Path, step: int, train_state: dict[str, Any], config_yaml: str
    ) -> Path:
        """Write a checkpoint; every rank calls this."""
        return save_checkpoint(self.engine, checkpoints, step, self.world, train_state, config_yaml)

    def load(self, checkpoint: Checkpoint) -> None:
        """Take weights and optimizer state from a checkpoint of any world and stage."""
        load_checkpoint(self.engine, checkpoint, self.world)
