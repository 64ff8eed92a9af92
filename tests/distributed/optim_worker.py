"""Rank script: optimizers over real DeepSpeed ranks.

The first argument is a JSON object: `output`, and `runs`, a list of objects:

    key         of its result
    steps       to train; from the checkpoint `load` if given; saved to the folder `save` at the end
    stage, precision, offload, micro    of the engine
    optim       OptimConfig's fields
    pairs       rows are pairs: the next-sentence head, with a bias of two elements
    naive       take the layout away from LAMB
    compiled    compile LAMB's arithmetic however small the model is
    kernels     KernelsConfig's fields
    skip        steps whose loss is made non-finite
    watch       steps whose layers are measured
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
import world_support as support
from deepspeed.accelerator import get_accelerator

from roberta_dist.checkpoint.reader import open_checkpoint
from roberta_dist.config.model import Attention, CrossEntropy, Fusion, KernelsConfig
from roberta_dist.config.optim import Backend, OptimConfig, Optimizer
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.config.train import EngineConfig, Offload, Precision, TrainConfig
from roberta_dist.engine.engine import TrainEngine
from roberta_dist.engine.layout import flat_tensors, held_fragments
from roberta_dist.model.encoder import RobertaForPretraining
from roberta_dist.model.init import init_weights
from roberta_dist.optim import lamb
from roberta_dist.optim.build import build_optimizer
from roberta_dist.optim.loss_scale import LossScale
from roberta_dist.train.state import TrainState

MODEL = replace(support.MODEL, num_layers=4)
ROWS = 16


def make_model(pairs=False, kernels=None):
    kernels = kernels or KernelsConfig()
    model = RobertaForPretraining(MODEL, kernels, support.VOCAB, next_sentence=pairs)
    init_weights(model, 1)
    return model


def rows_of(step):
    return list(range(step * ROWS, (step + 1) * ROWS))


def optim_config(optim):
    name, backend = optim.get("name", "adamw"), optim.get("backend", "auto")
    return OptimConfig(**{**optim, "name": Optimizer(name), "backend": Backend(backend)})


def kernels_config(kernels):
    kinds = {"attention": Attention, "fusion": Fusion, "cross_entropy": CrossEntropy}
    return KernelsConfig(**{key: kinds.get(key, bool)(value) for key, value in kernels.items()})


def make_engine(run, world, device):
    """The engine, and how often DeepSpeed called the optimizer while it was made."""
    config = PretrainConfig(
        model=MODEL,
        optim=optim_config(run["optim"]),
        train=TrainConfig(global_batch_size=ROWS, micro_batch_size=run["micro"]),
        engine=EngineConfig(
            stage=run["stage"],
            precision=Precision(run.get("precision", "fp32")),
            communication=Precision(run.get("communication", "fp32")),
            offload=Offload(run.get("offload", "none")),
            sub_group_size=run.get("sub_group_size", 8_000),
        ),
        data=replace(PretrainConfig().data, sequence_length=32),
    )
    model = make_model(run.get("pairs", False), kernels_config(run.get("kernels", {})))
    with mock.patch.object(lamb, "COMPILED_FROM", 0 if run.get("compiled") else sys.maxsize):
        optimizer = build_optimizer(model, config.optim)
    calls = []
    hook = optimizer.register_step_post_hook(lambda *_: calls.append(1))
    micro_steps = ROWS // run["micro"] // world.world_size
    engine = TrainEngine(model, optimizer, config, world, device, micro_steps)
    hook.remove()
    return engine, len(calls)


def untouched(engine, run):
    """Weights are the initial ones, moments and steps are 0."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(run.get("precision"), torch.float32)
    model = make_model(run.get("pairs", False))
    initial = {name: p.detach().to(dtype).float() for name, p in model.named_parameters()}
    state = engine.engine.basic_optimizer.state
    weights = all(
        torch.equal(f.view(f.flat), initial[f.name].view(-1)[f.start : f.start + f.length])
        for f in held_fragments(engine.engine)
    )
    moments = all(
        not torch.as_tensor(state[flat][key]).any()
        for flat in flat_tensors(engine.engine)
        for key in ("exp_avg", "exp_avg_sq", "step")
    )
    return bool(weights and moments)


def train(run, world, device):
    if run.get("precision") == "fp16":  # DeepSpeed asks for AVX512-FP16; torch has it in software
        get_accelerator().is_fp16_supported = lambda: True
    engine, calls = make_engine(run, world, device)
    scale, scales = LossScale(run.get("scale", 1.0)), []
    counted = []
    engine.engine.basic_optimizer.register_step_post_hook(lambda *_: counted.append(1))
    result = {"calls": calls, "untouched": untouched(engine, run)}
    result |= {"loss": [], "layers": [], "skipped": []}
    if run.get("naive"):
        engine.engine.basic_optimizer.bind({}, 0, lambda norms: norms)
    first = 0
    if "load" in run:
        checkpoint = open_checkpoint(Path(run["load"]))
        engine.load(checkpoint)
        first = int(checkpoint.train_state["step"])
    per_rank, micro = ROWS // world.world_size, run["micro"]
    for step in range(first, run["steps"]):
        own = rows_of(step)[world.rank * per_rank : (world.rank + 1) * per_rank]
        batches = [
            support.random_batch(own[i : i + micro], pairs=run.get("pairs", False))
            for i in range(0, per_rank, micro)
        ]
        hook = None
        if step in run.get("skip", []):
            layer = engine.engine.module.layers[0]
            hook = layer.register_forward_hook(lambda part, inputs, output: output * float("nan"))
        watched = step + 1 if step in run.get("watch", []) else 0
        outcome = engine.train_step(batches, step, run["lr"], scale.scale, watched)
        while run.get("precision") == "fp16" and not outcome.applied:
            scale = scale.overflowed()
            outcome = engine.train_step(batches, step, run["lr"], scale.scale, watched)
        scale = scale.applied(run.get("window", 0))
        scales.append(scale.scale)
        if hook is not None:
            hook.remove()
            result["skipped"].append(not outcome.applied)
            continue
        result["loss"].append(outcome.loss)
        result["layers"].append(outcome.layers)
        result.setdefault("calls_a_step", len(counted))
    if "save" in run:
        state = TrainState(step=run["steps"], next_row=run["steps"] * ROWS,
                           optimizer_step=run["steps"]).to_json({})  # fmt: skip
        engine.save(Path(run["save"]), run["steps"], state, "run_dir: x\n")
    result["scales"] = scales
    optimizer = engine.engine.optimizer
    result["sub_groups"] = len(optimizer.fp16_groups) if run["stage"] == 3 else 0
    result["class"] = type(optimizer).__name__
    result["optimizer"] = type(engine.engine.basic_optimizer).__name__
    return result


def train_all(arguments, world, device):
    results = {}
    for run in arguments["runs"]:
        with mock.patch.object(lamb, "SMALL", 1 if run.get("compiled") else lamb.SMALL):
            results[run["key"]] = train(run, world, device)
    return results


if __name__ == "__main__":
    support.rank_main(train_all)
