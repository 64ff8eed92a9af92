"""The arms of `bench_step.py`: ways to do one training step, and the process that each lives in.

T tokens · M predicted tokens · R rows · L row length
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from bench_optim import LR, VOCABULARY, synchronize
from hf_trainer import collate, rows_of
from step_products import model_products
from torch import Tensor
from torch.optim import AdamW, Optimizer

from roberta_dist.config.data import MaskingConfig
from roberta_dist.config.load import conf_dir, load_yaml
from roberta_dist.config.model import KernelsConfig, ModelConfig
from roberta_dist.config.optim import OptimConfig
from roberta_dist.corpus.manifest import SpecialTokens
from roberta_dist.interop.huggingface import hf_config, stay_offline
from roberta_dist.model.encoder import RobertaForPretraining
from roberta_dist.model.init import init_weights
from roberta_dist.optim.build import build_optimizer
from roberta_dist.runtime.world import World
from roberta_dist.stream.batch import Batch, make_batch
from roberta_dist.stream.masking import mask_rule
from roberta_dist.stream.tensors import to_tensors
from roberta_dist.train.environment import describe_environment
from roberta_dist.train.speed import matrix_rate, memory_mib

ARMS = ("ours", "hf", "hf_best", "ceiling")
SPECIAL = SpecialTokens(bos=0, pad=1, eos=2, unk=3, mask=VOCABULARY - 1)
SEED = 1
GPU_STEPS = 5
"""Steps of a turn on a GPU."""

Step = Callable[[], Tensor]
"""Does the work of one step, or its backward pass; returns the mean loss it began with, a scalar on the device."""


@dataclass(frozen=True)
class Job:
    """What all arms compute.

    Attributes:
        size: name in conf/model.
        seq: tokens of a row.
        rows: of the batch.
        device: `cpu` or `cuda`.
        precision: `fp32`, or `bf16`: ours as under ZeRO, transformers' under torch.autocast as its
            Trainer has it.
        threads: of each arm on the CPU.
        hf_compile: `hf_best` is compiled.
    """

    size: str
    seq: int
    rows: int
    device: str
    precision: str
    threads: int
    hf_compile: bool

    @property
    def model(self) -> ModelConfig:
        """Sizes and dropout."""
        return load_yaml(ModelConfig, conf_dir() / "model" / f"{self.size}.yaml")

    @property
    def dtype(self) -> torch.dtype:
        """What matrix products are computed in."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def batch(self) -> Batch:
        """Full rows of random tokens, masked as a run masks them: the same in every process."""
        rule = mask_rule(MaskingConfig(), SEED, "train", VOCABULARY, SPECIAL)
        rows = np.random.default_rng(SEED).choice(rule.ordinary_ids, (self.rows, self.seq))
        rows[:, 0], rows[:, -1] = SPECIAL.bos, SPECIAL.eos
        return make_batch(list(rows), np.arange(self.rows), rule)


def training_step(optimizer: Optimizer, backward: Step) -> Step:
    """Forward, backward, update and clearing of gradients."""
    for group in optimizer.param_groups:
        group["lr"] = LR

    def step() -> Tensor:
        loss = backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def ours(job: Job) -> Step:
    """Our model with the kernels that `auto` picks here, and the optimizer of a run.

    In bf16 as under ZeRO: weights, activations and their gradients are bf16, the update is made to fp32
    master weights.
    """
    device, batch = torch.device(job.device), job.batch()
    model = RobertaForPretraining(job.model, KernelsConfig(), VOCABULARY)
    init_weights(model, SEED)
    model.to(device).train()
    optimizer = build_optimizer(model, OptimConfig(), device)
    inputs, masked = to_tensors(batch, device), len(batch.masked_index_M)

    def backward() -> Tensor:
        loss: Tensor = model(**inputs) / masked
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    if job.precision == "fp32":
        return training_step(optimizer, backward)
    low = copy.deepcopy(model).to(job.dtype)
    masters: list[Tensor] = list(model.parameters())
    parameters: list[Tensor] = list(low.parameters())
    gradients = [torch.empty_like(master) for master in masters]

    def backward_low() -> Tensor:
        with torch.no_grad():
            torch._foreach_copy_(parameters, masters)
        loss: Tensor = low(**inputs) / masked
        loss.backward()  # type: ignore[no-untyped-call]
        found = [parameter.grad for parameter in parameters]
        torch._foreach_copy_(gradients, [g for g in found if g is not None])
        low.zero_grad()
        for master, gradient in zip(masters, gradients, strict=True):
            master.grad = gradient
        return loss

    return training_step(optimizer, backward_low)


def hf_inputs(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """A batch as transformers' model takes it, with an attention mask: int64 [rows, L] each."""
    inputs = collate(list(rows_of(batch)), SPECIAL.pad)
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def hugging_face(job: Job, best: bool) -> Step:
    """transformers' model as its Trainer runs it, or with the best settings it has.

    Trainer's defaults in the installed version: sdpa, torch's fused AdamW, an attention mask of ones
    from the collator. `best` leaves the mask out, as all rows are full, and may compile.
    """
    stay_offline()
    from transformers import RobertaConfig, RobertaForMaskedLM

    device = torch.device(job.device)
    model: Any = RobertaForMaskedLM(RobertaConfig(**hf_config(job.model, VOCABULARY, SPECIAL)))
    assert model.config._attn_implementation == "sdpa", model.config._attn_implementation
    model.to(device).train()
    optimizer = AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=True)
    inputs = hf_inputs(job.batch(), device)
    if best:
        del inputs["attention_mask"]
    called: Any = torch.compile(model) if best and job.hf_compile else model

    def backward() -> Tensor:
        with torch.autocast(job.device, torch.bfloat16, enabled=job.precision == "bf16"):
            loss: Tensor = called(**inputs).loss
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    return training_step(optimizer, backward)


def ceiling(job: Job) -> Step:
    """Nothing but the matrix products of our model, into buffers made before."""
    device = torch.device(job.device)
    masked = len(job.batch().masked_index_M)
    products = model_products(job.model, VOCABULARY, job.rows, job.seq, masked, device, job.dtype)
    no_loss = torch.tensor(math.nan)

    def step() -> Tensor:
        for left, right, out in products:
            (torch.bmm if left.ndim == 3 else torch.mm)(left, right, out=out)
        return no_loss

    return step


def make_step(arm: str, job: Job) -> Step:
    """The step of one of ARMS, with its weights on the device."""
    if arm == "ours":
        return ours(job)
    if arm == "ceiling":
        return ceiling(job)
    return hugging_face(job, best=arm == "hf_best")


def timed(step: Step, device: torch.device) -> tuple[float, float]:
    """Seconds of a step, and its loss.

    On a GPU the mean of a few, so that the host runs ahead of the device as in a run, after one that
    is not counted; then its cached memory is given back, so that arms need not fit beside each other.
    """
    steps = 1
    if device.type == "cuda":
        steps = GPU_STEPS
        step()
    synchronize(device)
    began = time.perf_counter()
    for _ in range(steps):
        loss = step()
    synchronize(device)
    took = (time.perf_counter() - began) / steps
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return took, float(loss)


def serve(pipe: Connection, arm: str, job: Job) -> None:
    """Life of an arm's process: answer what the parent asks until it hangs up.

    `step` → (seconds, mean loss); `matrix_rate` → FLOP/s of a square product now; `facts` → peak
    memory so far, the process and its libraries included on a CPU, and what this runs on.
    """
    torch.set_num_threads(job.threads)
    torch.manual_seed(SEED)
    device = torch.device(job.device)
    step = make_step(arm, job)
    while True:
        try:
            question = pipe.recv()
        except EOFError:
            return
        if question == "step":
            pipe.send(timed(step, device))
        elif question == "matrix_rate":
            pipe.send(matrix_rate(device, job.dtype))
        else:
            pipe.send({"peak_mib": memory_mib(device), **describe_environment(World(), device)})
