"""One optimizer step over DeepSpeed, exact in masked tokens and in pairs.

The gradient of a step is that of Σ CE over masked tokens ÷ their global count, and with pairs + Σ CE
over pairs ÷ their global count. DeepSpeed averages over ranks, so a micro-batch's sum is multiplied
by world / count, and its own division by the accumulation steps is switched off: a step may have
any number of micro-batches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from roberta_dist.checkpoint.format import step_folder
from roberta_dist.checkpoint.reader import Checkpoint
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.config.train import AUTO, Precision
from roberta_dist.engine.discard import discard_gradient, without_trace
from roberta_dist.engine.guards import is_finite
from roberta_dist.engine.layout import gradient_parts, zero_stage
from roberta_dist.engine.ranks import Ranks
from roberta_dist.engine.result import Counts, StepResult
from roberta_dist.engine.save import ensure_optimizer_state, load_checkpoint
from roberta_dist.engine.saver import Saver
from roberta_dist.engine.setup import initialize
from roberta_dist.engine.telemetry import LayerWatch
from roberta_dist.optim.lamb import Lamb
from roberta_dist.runtime.dist import all_sum
from roberta_dist.runtime.heap import HeapTrimmer
from roberta_dist.runtime.rng import derive_key
from roberta_dist.runtime.world import World
from roberta_dist.stream.batch import Batch
from roberta_dist.stream.measure import Sums, labelled_pairs, masked_tokens, measure
from roberta_dist.stream.tensors import Upload


class TrainEngine:
    """DeepSpeed behind the few verbs the loop needs.

    Args:
        model: with its initial weights.
        optimizer: over the model's parameters.
        config: of the run.
        world: ranks.
        device: this rank's.
        micro_steps: the most micro-batches a step of the run has; a step may have fewer.
    """

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
        self.fp16 = config.engine.precision is Precision.fp16
        lamb = optimizer if isinstance(optimizer, Lamb) else None
        self.prenormalized = lamb if config.optim.prenormalize else None
        self._nan_rows = frozenset(config.guard.inject_nan_rows)
        self._upload = Upload(device)
        # torch.manual_seed notes a stack trace for each accelerator that is not there: 1 ms.
        self._dropout: Any = torch.default_generator if device.type == "cpu" else torch
        budgeted = config.train.micro_batch_size == AUTO
        self._heap = HeapTrimmer(enabled=device.type == "cpu", short=budgeted)
        self.engine = initialize(model, optimizer, config, micro_steps, device)
        ensure_optimizer_state(self.engine, 0)
        self.layer_watch = LayerWatch(self.engine, optimizer, config.optim, device)
        self.saver = Saver(self.engine, world, device)
        self.ranks = Ranks(self.engine, device, config.guard.slow_rank_every > 0)

    def train_step(
        self,
        batches: Sequence[Batch],
        step: int,
        lr: float,
        loss_scale: float = 1.0,
        watched_update: int = 0,
        accept: Callable[[float], bool] = lambda loss: True,
    ) -> StepResult:
        """Forward, backward and update for one global batch.

        The update is not applied when nothing was labelled, a number is not finite, or `accept` says no.

        Args:
            batches: this rank's micro-batches; every rank has the same number of them.
            step: keys the dropout.
            lr: of the update.
            loss_scale: of fp16; 1 otherwise.
            watched_update: number of this update, from 1, if its layers are to be measured.
            accept: told the loss, if it is finite; says the same on every rank.
        """
        if self.fp16:
            self.engine.optimizer.loss_scaler.cur_scale = loss_scale
        began = time.perf_counter()
        counts = self._count(batches)
        labelled = counts.masked + counts.pairs > 0
        sums = torch.zeros((), dtype=torch.float64, device=self.device)
        grad_norm = 0.0
        if labelled:
            for micro_step, batch in enumerate(batches):
                sums = sums + self._micro_step(batch, step, micro_step, len(batches), counts)
                self._heap.check()
            sums, scaled_norm = self._agree(sums)
            grad_norm = scaled_norm / loss_scale
        loss_sum, nsp_sum, correct = (*sums.reshape(-1).tolist(), 0.0, 0.0)[:3]
        computed = time.perf_counter()
        loss = loss_sum / counts.masked if counts.masked else math.nan
        applied = labelled and is_finite(loss_sum, nsp_sum, grad_norm)
        applied = applied and (not counts.masked or accept(loss))
        layers: dict[str, float] = {}
        if applied:
            apply = partial(self._apply, lr, grad_norm)
            layers = self.layer_watch.during(apply, watched_update, grad_norm)
        elif labelled:
            discard_gradient(self.engine)
        return StepResult(
            loss=loss,
            nsp_loss=nsp_sum / counts.pairs if counts.pairs else math.nan,
            nsp_accuracy=correct / counts.pairs if counts.pairs else math.nan,
            masked_tokens=counts.masked,
            pairs=counts.pairs,
            tokens=counts.tokens,
            grad_norm=grad_norm,
            applied=applied,
            layers=layers,
            compute_s=computed - began,
            optimizer_s=time.perf_counter() - computed,
        )

    def pass_over(self, batches: Sequence[Batch]) -> StepResult:
        """Count a global batch and do nothing else."""
        return StepResult.passed_over(self._count(batches))

    def _count(self, batches: Sequence[Batch]) -> Counts:
        """Counts of the global batch: one all-reduce."""
        real = sum(int(np.diff(batch.cu_seqlens)[batch.row_ids_R >= 0].sum()) for batch in batches)
        own = [sum(map(masked_tokens, batches)), real, sum(map(labelled_pairs, batches))]
        masked, tokens, pairs = all_sum(torch.tensor(own, device=self.device)).tolist()
        return Counts(masked, tokens, pairs)

    def _micro_step(
        self, batch: Batch, step: int, micro_step: int, micro_steps: int, counts: Counts
    ) -> Tensor:
        """Forward and backward; returns the model's sums, float64."""
        key = derive_key(self.seed, "dropout", step, micro_step, self.world.rank)
        self._dropout.manual_seed(key >> 1)
        self.engine.set_gradient_accumulation_boundary(micro_step == micro_steps - 1)
        with self.ranks.forward():
            sums: Tensor = self.engine(**self._upload.tensors(batch))
        if self._nan_rows and not self._nan_rows.isdisjoint(batch.row_ids_R.tolist()):
            sums = sums * math.nan
        # The loss is a new tensor on purpose: DeepSpeed 0.19.8 divides by the accumulation steps
        # when backward() gets the very tensor that forward() returned (BF16_Optimizer, stage 0).
        self.engine.backward(self._weighted(sums, counts), scale_wrt_gas=False)
        return sums.detach().double()

    def _weighted(self, sums: Tensor, counts: Counts) -> Tensor:
        """Each sum over the global count of what it sums, times the ranks DeepSpeed averages over."""
        world_size = self.world.world_size
        if sums.ndim == 0:
            return sums * (world_size / max(counts.masked, 1))
        mlm, nsp, _ = sums.unbind()
        masked, pairs = max(counts.masked, 1), max(counts.pairs, 1)
        return mlm * (world_size / masked) + nsp * (world_size / pairs)

    def _agree(self, sums: Tensor) -> tuple[Tensor, float]:
        """Global sums and gradient norm: one all-reduce of two or four numbers."""
        parts = gradient_parts(self.engine)
        squares = [part.detach().float().norm().double().square() for part in parts]
        square = torch.stack(squares).sum() if squares else sums.new_zeros(())
        if zero_stage(self.engine) == 0:  # every rank holds all of it
            square = square / self.world.world_size
        # With offload the gradient is in host memory.
        totals = all_sum(torch.cat([sums.reshape(-1), square.reshape(1).to(sums.device)]))
        return totals[:-1], float(totals[-1].sqrt())

    def _apply(self, lr: float, grad_norm: float) -> None:
        if self.prenormalized is not None and grad_norm > 0:
            self.prenormalized.gradient_scale = 1 / grad_norm
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        skipped = self.engine.skipped_steps
        self.engine.step()
        if self.engine.skipped_steps != skipped:
            raise AssertionError("DeepSpeed skipped an update that the guard had passed")

    def probe(self, batches: Sequence[Batch]) -> None:
        """Forward, backward and reduction of a step that leaves no trace but its memory.

        The gradient is dropped; weights, optimizer state, counters and random state stay as they are.

        Args:
            batches: this rank's micro-batches; every rank has the same number of them.
        """
        with without_trace(self.engine, self.device):
            counts = self._count(batches)
            for micro_step, batch in enumerate(batches):
                self._micro_step(batch, 0, micro_step, len(batches), counts)
                self._heap.check()
            discard_gradient(self.engine)
        self._heap.trim()

    def held_out_sums(self, batches: Iterable[Batch]) -> Sums:
        """Losses over all ranks' held-out batches, without dropout.

        Args:
            batches: this rank's; every rank has the same number of them.
        """
        self.engine.eval()
        try:
            values = measure(self.engine, batches, self.device)
        finally:
            self.engine.train()
        return Sums.of(all_sum(values))

    def save(
        self, checkpoints: Path, step: int, train_state: dict[str, Any], config_yaml: str
    ) -> Path:
        """Write a checkpoint and wait for it; every rank calls this.

        Raises:
            StorageError: on every rank when one could not write; nothing is left behind.
        """
        self.saver.finish()
        self.saver.start(checkpoints, step, train_state, config_yaml)
        outcome = self.saver.finish()
        assert outcome is not None
        if outcome.error is not None:
            raise outcome.error
        return step_folder(checkpoints, step)

    def load(self, checkpoint: Checkpoint, with_optimizer: bool = True) -> None:
        """Take weights, and optimizer state, from a checkpoint of any world and stage."""
        load_checkpoint(self.engine, checkpoint, with_optimizer)
