"""Rank script: what one world of real DeepSpeed ranks can show in one start.

The first argument is a JSON object; each task writes its result under its own name.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
import world_support as support
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import safe_get_full_grad
from torch import nn

from roberta_dist.checkpoint.reader import open_checkpoint
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.config.train import EngineConfig, Offload, Precision, TrainConfig
from roberta_dist.engine.ds_config import deepspeed_config
from roberta_dist.engine.engine import TrainEngine
from roberta_dist.engine.layout import flat_tensors, gradient_parts
from roberta_dist.optim.build import build_optimizer
from roberta_dist.runtime.dist import all_sum
from roberta_dist.stream.synthetic import empty_batch, full_batch
from roberta_dist.train.state import TrainState


def make_engine(
    stage,
    world,
    device,
    micro=2,
    precision=Precision.fp32,
    rows=support.ROWS,
    pairs=False,
    offload="none",
):
    config = PretrainConfig(
        model=support.MODEL,
        optim=support.OPTIM,
        train=TrainConfig(global_batch_size=rows, micro_batch_size=micro),
        engine=EngineConfig(
            stage=stage, precision=precision, offload=Offload(offload), sub_group_size=10_000
        ),
        data=replace(PretrainConfig().data, sequence_length=32),
    )
    model = support.make_model(pairs)
    micro_steps = rows // micro // world.world_size
    optimizer = build_optimizer(model, config.optim)
    return TrainEngine(model, optimizer, config, world, device, micro_steps)


def batches_of(step, world, micro=2, rows=support.ROWS, pairs=False):
    per_rank = rows // world.world_size
    row_ids = list(range(step * rows, (step + 1) * rows))
    if pairs:
        row_ids = support.pair_rows(step * rows, rows)
    own = row_ids[world.rank * per_rank : (world.rank + 1) * per_rank]
    return [
        support.random_batch(own[i : i + micro], pairs=pairs) for i in range(0, per_rank, micro)
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
    for stage, micro, pairs in arguments["splits"]:
        engine = make_engine(stage, world, device, micro=micro, pairs=pairs)
        batches = batches_of(0, world, micro, pairs=pairs)
        counts = engine._count(batches)
        for micro_step, batch in enumerate(batches):
            engine._micro_step(batch, 0, micro_step, len(batches), counts)
        named = engine.engine.module.named_parameters()
        full = {name: safe_get_full_grad(p).double().clone() for name, p in named}
        if world.is_main:
            split = f"{world.world_size}-{stage}-{micro}{'-pairs' * pairs}"
            torch.save(full, f"{arguments['output']}.grad-{split}.pt")
    return len(arguments["splits"])


def ramp(arguments, world, device):
    """Steps of differing numbers of micro-batches, with pairs: what each says, and at the end."""
    result = {}
    for stage, precision, configured in arguments["runs"]:
        rows = configured * arguments["micro"] * world.world_size
        engine = make_engine(
            stage, world, device, arguments["micro"], Precision(precision), rows, pairs=True
        )
        steps = []
        for step, micro_steps in enumerate(arguments["micro_steps"]):
            step_rows = micro_steps * arguments["micro"] * world.world_size
            batches = batches_of(step, world, arguments["micro"], step_rows, pairs=True)
            steps.append(engine.train_step(batches, step, support.LR))
        held_out = engine.held_out_sums(batches_of(1000, world, pairs=True))
        result[f"{stage}-{precision}-{configured}"] = {
            "loss": [s.loss for s in steps],
            "nsp_loss": [s.nsp_loss for s in steps],
            "nsp_accuracy": [s.nsp_accuracy for s in steps],
            "grad_norm": [s.grad_norm for s in steps],
            "counts": [(s.masked_tokens, s.pairs) for s in steps],
            "applied": [s.applied for s in steps],
            "held_out": vars(held_out),
        }
    return result


def waits(arguments, world, device):
    """Collectives, and numbers read from the device, of a step in 1 and in 4 micro-batches."""
    result = {}
    for stage, micro in product((0, 1), (4, 1)):
        engine = make_engine(stage, world, device, micro)
        engine.train_step(batches_of(0, world, micro), 0, support.LR)
        with torch.profiler.profile() as profiler:
            engine.train_step(batches_of(1, world, micro), 1, support.LR)
        calls = {event.key: event.count for event in profiler.key_averages()}
        result[f"{stage} {support.ROWS // world.world_size // micro}"] = {
            "collectives": sum(n for name, n in calls.items() if name.startswith("c10d::")),
            "read": calls.get("aten::_local_scalar_dense", 0),
        }
    return result


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
    for stage, offload in product((1, 2, 3), ("none", "cpu")):
        engine_config = EngineConfig(
            stage=stage, precision=Precision.bf16, offload=Offload(offload)
        )
        model = OneNumber()
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=torch.optim.AdamW(model.parameters(), lr=0.0),
            config=deepspeed_config(engine_config, 1, 64, 0.0, accelerator=False),
        )
        for micro_step in range(64):
            engine.set_gradient_accumulation_boundary(micro_step == 63)
            value = 1.0 if micro_step == 0 else 2.0**-9
            engine.backward(engine(value) * 1.0, scale_wrt_gas=False)
        held = sum(float(part.sum()) for part in gradient_parts(engine))
        sums[f"{stage}-{offload}"] = float(all_sum(torch.tensor(held))) / 8
        engine.step()
    return sums


def checkpoints(arguments, world, device):
    """Save at one stage, or load what another world saved and go on."""
    result = {}
    folder = Path(arguments["checkpoints"])
    for stage in arguments["save"]:
        engine = make_engine(stage, world, device, pairs=True)
        for step in range(5):
            engine.train_step(batches_of(step, world, pairs=True), step, support.LR)
        state = TrainState(step=5, next_row=40, optimizer_step=5).to_json({})
        engine.save(folder / f"stage{stage}", 5, state, "run_dir: x\n")
        result[f"saved{stage}"] = _next_losses(engine, world)
    for source, stage in arguments["load"]:
        engine = make_engine(stage, world, device, pairs=True)
        engine.load(open_checkpoint(folder / f"stage{source}" / "step_00000005"))
        result[f"{source}to{stage}"] = _next_losses(engine, world)
    return result


def _next_losses(engine, world):
    steps = [
        engine.train_step(batches_of(step, world, pairs=True), step, support.LR)
        for step in range(5, 10)
    ]
    return [s.loss for s in steps] + [s.nsp_loss for s in steps]


def bad_numbers(arguments, world, device):
    """A batch whose loss is not finite moves nothing, at every stage; the next one is as if alone."""
    result = {}
    for stage, offload in arguments["stages"]:
        poisoned, clean = (
            make_engine(stage, world, device, pairs=True, offload=offload) for _ in range(2)
        )
        batches = [batches_of(step, world, pairs=True) for step in range(4)]
        applied = [poisoned.train_step(batches[0], 0, support.LR).applied]
        clean.train_step(batches[0], 0, support.LR)
        module = poisoned.engine.module
        for step, part in ((1, module.layers[0]), (2, module.next_sentence)):
            hook = part.register_forward_hook(lambda part, inputs, output: output * float("nan"))
            applied.append(poisoned.train_step(batches[step], step, support.LR).applied)
            hook.remove()
        left = poisoned.train_step(batches[3], 3, support.LR)
        right = clean.train_step(batches[3], 3, support.LR)
        result[f"{stage}-{offload}"] = [*applied, left.applied, left.loss == right.loss]
    return result


def probes(arguments, world, device):
    """An engine that is probed before and between its steps beside one that never is."""
    result = {}
    # DeepSpeed asks for AVX512-FP16; torch has it in software.
    get_accelerator().is_fp16_supported = lambda: True
    for stage, precision, offload in arguments["runs"]:
        given = {"precision": Precision(precision), "offload": offload, "pairs": True}
        probed, clean = (make_engine(stage, world, device, **given) for _ in range(2))
        same = []
        for step in range(3):
            before = _state(probed)
            masking, vocab = PretrainConfig().masking, support.VOCAB
            for rows in (0, 1, 5, 2):
                batch = full_batch(rows, 32, masking, vocab, pairs=True)
                batches = [batch] * 2 if rows else [empty_batch(support.SPECIAL, pairs=True)]
                probed.probe(batches)
            same.append(_equal(before, _state(probed)))
            batches = batches_of(step, world, pairs=True)
            left, right = (e.train_step(batches, step, support.LR) for e in (probed, clean))
            same.append(
                left.applied and (left.loss, left.grad_norm) == (right.loss, right.grad_norm)
            )
            same.append(_equal(_state(probed), _state(clean)))
        result[f"{stage}-{precision}-{offload}"] = same
    return result


def _state(engine):
    """Everything that a probe must not touch, as copies."""
    deepspeed = engine.engine
    flats = flat_tensors(deepspeed)
    moments = [deepspeed.basic_optimizer.state[flat] for flat in flats]
    counters = ("micro_steps", "global_steps", "global_samples", "skipped_steps")
    return [
        torch.get_rng_state(),
        torch.tensor([vars(deepspeed)[name] for name in counters]),
        *(flat.detach().clone() for flat in flats),
        *(torch.as_tensor(state[name]).clone() for state in moments for name in sorted(state)),
        # Stage 3 gathers and releases whole parameters as it likes; its own part is what counts.
        *(vars(p).get("ds_tensor", p).detach().clone() for p in deepspeed.module.parameters()),
    ]


def _equal(left, right):
    return len(left) == len(right) and all(map(torch.equal, left, right))


TASKS = {
    task.__name__: task
    for task in (traces, gradients, ramp, waits, small_gradients, checkpoints, bad_numbers, probes)
}


def all_tasks(arguments, world, device):
    return {
        name: TASKS[name](given | {"output": arguments["output"]}, world, device)
        for name, given in arguments["tasks"].items()
    }


if __name__ == "__main__":
    support.rank_main(all_tasks)
