"""One rank at ZeRO 2 with bf16: memory on the GPU after a few steps, with and without offload.

Arguments: optimizer, `engine.offload`, file to write.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from roberta_dist.config.data import MaskingConfig
from roberta_dist.config.model import KernelsConfig, ModelConfig
from roberta_dist.config.optim import OptimConfig, Optimizer
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.config.train import EngineConfig, Offload, Precision, TrainConfig
from roberta_dist.corpus.manifest import SpecialTokens
from roberta_dist.engine.engine import TrainEngine
from roberta_dist.engine.setup import close_world, init_world
from roberta_dist.model.encoder import RobertaForPretraining
from roberta_dist.model.init import init_weights
from roberta_dist.optim.build import build_optimizer
from roberta_dist.runtime.leave import end_process
from roberta_dist.runtime.world import World
from roberta_dist.stream.batch import make_batch
from roberta_dist.stream.masking import mask_rule

MODEL = ModelConfig(num_layers=4, hidden_size=512, ffn_size=2048, num_heads=8, max_positions=64)
VOCABULARY, ROWS, STEPS = 30_000, 4, 3
SPECIAL = SpecialTokens(bos=0, pad=1, eos=2, unk=3, mask=VOCABULARY - 1)


def batch_of(step):
    rng = np.random.default_rng(step)
    rule = mask_rule(MaskingConfig(), 0, "train", VOCABULARY, SPECIAL)
    rows = [rng.integers(4, VOCABULARY - 1, size=32).astype(np.uint16) for _ in range(ROWS)]
    return make_batch(rows, np.arange(step * ROWS, (step + 1) * ROWS), rule)


def main(name, offload, output):
    world = World()
    device = init_world(world, 300)
    config = replace(
        PretrainConfig(),
        model=MODEL,
        optim=OptimConfig(name=Optimizer(name)),
        train=TrainConfig(global_batch_size=ROWS, micro_batch_size=ROWS),
        engine=EngineConfig(stage=2, precision=Precision.bf16, offload=Offload(offload)),
        data=replace(PretrainConfig().data, sequence_length=64),
    )
    model = RobertaForPretraining(MODEL, KernelsConfig(), VOCABULARY)
    init_weights(model, 1)
    parameters = sum(p.numel() for p in model.parameters())
    update_on = torch.device("cpu") if offload == "cpu" else device
    engine = TrainEngine(
        model, build_optimizer(model, config.optim, update_on), config, world, device, 1
    )
    engine.probe([batch_of(0)])  # drops a gradient
    for step in range(STEPS):
        loss = engine.train_step([batch_of(step)], step, 1e-3).loss
    result = {
        "bytes": torch.cuda.memory_allocated(device),
        "parameters": parameters,
        "loss": loss,
    }
    Path(output).write_text(json.dumps(result))
    close_world()


if __name__ == "__main__":
    main(*sys.argv[1:])
    end_process(0)
