"""Rank script: what one world of real DeepSpeed ranks can show in one start.

The first argument is a JSON object; each task writes its result under its own name.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
import world_support as support
from deepspeed.utils import safe_get_full_grad
from torch import nn

from roberta_dist.checkpoint.reader import open_checkpoint
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.config.train import EngineConfig, Precision, TrainConfig
from roberta_dist.engine.ds_config import deepspeed_config
from roberta_dist.engine.engine import TrainEngine
from roberta_dist.engine.setup import close_world, init_world
from roberta_dist.optim.build import build_optimizer
from roberta_dist.runtime.world import detect_world
from roberta_dist.train.state import TrainState


def make_engine(stage, world, device, micro=2, precision=Precision.fp32, rows=support.ROWS):
    config = PretrainConfig(
        model=support.MODEL,
        optim=support.OPTIM,
        train=TrainConfig(global_batch_size=rows, micro_batch_size=micro),
        engine=EngineConfig(stage=stage, precision=precision, sub_group_size=10_000),
        data=replace(PretrainConfig().data, sequence_length=32),
    )
    model = support.make_model()
    micro_steps = rows // micro // world.world_size
    optimizer = build_optimizer(model, config.optim)
    return TrainEngine(model, optimizer, config, world, device, micro_steps)


def batches_of(step, world, micro=2, rows=support.ROWS):
    per_rank = rows // world.world_size
    first = step * rows + world.rank * per_rank
    return [
        support.random_batch(list(range(first + i, first + i + micro)))
        for i in range(0, per_rank, micro)
    ]


def traces(arguments, world, device):
    """Loss and gradient norm of every step at each stage."""
    result = {"loss": {}, "norm": {}, "sub_groups": 0}
    for stage in arguments["stages"]:
        engine = make_engine(stage, world, device)
        steps = [
            engine.train_step(batches_of(s, world), s, support.LR)
            for s in range(arguments["steps"])
        ]
        result["loss"][stage] = [s.loss for s in steps]
        result["norm"][stage] = [s.grad_norm for s in steps]
        if stage == 3:
            result["sub_groups"] = len(engine.engine.optimizer.fp16_groups)
            result["groups"] = len(engine.engine.basic_optimizer.param_groups)
    return result


def gradients(arguments, world, device):
    """Save the reduced gradient of one batch, computed in the given splits and stages."""
    for stage, micro in arguments["splits"]:
        engine = make_engine(stage, world, device, micro=micro)
        batches = batches_of(0, world, micro)
        counts = engine._counts(batches)
        torch.distributed.all_reduce(counts)
        for micro_step, batch in enumerate(batches):
            engine._micro_step(batch, 0, micro_step, len(batches), int(counts[0]))
        named = engine.engine.module.named_parameters()
        full = {name: safe_get_full_grad(p).double().clone() for name, p in named}
        if world.is_main:
            torch.save(full, f"{arguments['output']}.grad-{world.world_size}-{stage}-{micro}.pt")
    return len(arguments["splits"])


class OneNumber(nn.Module):
    """A weight whose gradient is whatever number it is fed."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8))

    def forward(self, value):
        return (self.weight.float() * value).sum()


def small_gradients(arguments, world, device):
    """64 micro-gradients 1, 2⁻⁹ × 63 under bf16: what arrives at the optimizer."""
    import deepspeed

    sums = {}
    for stage in (1, 2, 3):
        engine_config = EngineConfig(stage=stage, precision=Precision.bf16)
        model = OneNumber()
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=torch.optim.AdamW(model.parameters(), lr=0.0),
            config=deepspeed_config(engine_config, 1, 64, 0.0, overlap_comm=False),
        )
        for micro_step in range(64):
            engine.set_gradient_accumulation_boundary(micro_step == 63)
            value = 1.0 if micro_step == 0 else 2.0**-9
            engine.backward(engine(value) * 1.0, scale_wrt_gas=False)
        sums[stage] = float(safe_get_full_grad(engine.module.weight)[0])
        engine.step()
    return sums


def checkpoints(arguments, world, device):
    """Save at one stage, or load what another world saved and go on."""
    result = {}
    folder = Path(arguments["checkpoints"])
    for stage in arguments["save"]:
        engine = make_engine(stage, world, device)
        for step in range(5):
            engine.train_step(batches_of(step, world), step, support.LR)
        state = TrainState(step=5, next_row=40, optimizer_step=5).to_json({})
        engine.save(folder / f"stage{stage}", 5, state, "run_dir: x\n")
        rest = [engine.train_step(batches_of(s, world), s, support.LR) for s in range(5, 10)]
        result[f"saved{stage}"] = [s.loss for s in rest]
    for source, stage in arguments["load"]:
        engine = make_engine(stage, world, device)
        engine.load(open_checkpoint(folder / f"stage{source}" / "step_00000005"))
        rest = [engine.train_step(batches_of(s, world), s, support.LR) for s in range(5, 10)]
        result[f"{source}to{stage}"] = [s.loss for s in rest]
    return result


def bad_numbers(arguments, world, device):
    """A batch whose loss is not finite moves nothing, at every stage; the next one is as if alone."""
    result = {}
    for stage in arguments["stages"]:
        poisoned, clean = make_engine(stage, world, device), make_engine(stage, world, device)
        first = poisoned.train_step(batches_of(0, world), 0, support.LR)
        clean.train_step(batches_of(0, world), 0, support.LR)
        hook = poisoned.engine.module.layers[0].register_forward_hook(
            lambda module, inputs, output: output * float("nan")
        )
        bad = poisoned.train_step(batches_of(1, world), 1, support.LR)
        hook.remove()
        left = poisoned.train_step(batches_of(2, world), 2, support.LR)
        right = clean.train_step(batches_of(2, world), 2, support.LR)
        result[stage] = [first.applied, bad.applied, left.applied, left.loss == right.loss]
    return result


TASKS = {
    task.__name__: task for task in (traces, gradients, small_gradients, checkpoints, bad_numbers)
}


def main(arguments):
    world = detect_world()
    device = init_world(world, 120)
    results = {name: TASKS[name](given | {"output": arguments["output"]}, world, device)
               for name, given in arguments["tasks"].items()}  # fmt: skip
    if world.is_main:
        Path(arguments["output"]).write_text(json.dumps(results))
    close_world()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(json.loads(sys.argv[1]))
