"""How long a save keeps the steps waiting: written beside them, and waited for.

    python tools/bench_checkpoint.py [--size base] [--saves 5] [--folder DIR]

One rank with a model of conf/model and its AdamW state, ZeRO-1. In turns A B A B: a synchronous save
(copy, write, checksum, fsync, marker), and an asynchronous one, whose stall is the copy into host
memory; while it is written training steps run. The last line is JSON: `async_stall_ratio`, the median
of the turns' ratios; `sync_s`, `stall_s`, medians; `write_s`, how long the writer took beside the
steps; `slowdown`, a step beside the writer over one without; `bytes`; `identical`, whether both wrote
the same bytes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_optim import VOCABULARY
from step_arms import SPECIAL

from roberta_dist.checkpoint.format import step_folder
from roberta_dist.config.data import MaskingConfig
from roberta_dist.config.load import compose
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.engine.engine import TrainEngine
from roberta_dist.engine.setup import close_world, init_world
from roberta_dist.model.encoder import RobertaForPretraining
from roberta_dist.model.init import init_weights
from roberta_dist.optim.build import build_optimizer
from roberta_dist.runtime.leave import end_process
from roberta_dist.runtime.rundir import COMPLETE
from roberta_dist.runtime.world import World
from roberta_dist.stream.batch import Batch, make_batch
from roberta_dist.stream.masking import mask_rule

ROWS, LENGTH = 1, 128
"""Of a step that runs beside the writer."""


def make_engine(size: str) -> TrainEngine:
    """A model of this size under ZeRO-1 in fp32."""
    config = compose("pretrain", PretrainConfig, [f"model={size}"])
    config = replace(config, train=replace(config.train, global_batch_size=1, micro_batch_size=1))
    world = World()
    device = init_world(world, 600)
    model = RobertaForPretraining(config.model, config.kernels, VOCABULARY)
    init_weights(model, 1)
    optimizer = build_optimizer(model, config.optim, device)
    return TrainEngine(model, optimizer, config, world, device, 1)


def make_rows() -> Batch:
    """A small batch."""
    rule = mask_rule(MaskingConfig(), 1, "train", VOCABULARY, SPECIAL)
    rows = np.random.default_rng(1).choice(rule.ordinary_ids, (ROWS, LENGTH))
    return make_batch(list(rows), np.arange(ROWS), rule)


def timed_step(engine: TrainEngine, batch: Batch) -> float:
    """Seconds of one training step."""
    began = time.perf_counter()
    engine.train_step([batch], 0, 1e-5)
    return time.perf_counter() - began


def marker(folder: Path) -> Any:
    """Sizes and sums of a checkpoint's shards."""
    files = json.loads((folder / COMPLETE).read_text())["files"]
    return {name: entry for name, entry in files.items() if name.startswith("shards/")}


def measure(engine: TrainEngine, folder: Path, saves: int) -> dict[str, Any]:
    """Save in turns; the step number tells the saves apart."""
    batch = make_rows()
    state = {"optimizer_step": 1}
    plain = [timed_step(engine, batch) for _ in range(5)][2:]
    sync, stall, write, beside, same = [], [], [], [], True
    for turn in range(saves + 1):
        began = time.perf_counter()
        whole = engine.save(folder, 2 * turn + 1, state, "{}")
        sync.append(time.perf_counter() - began)
        began = time.perf_counter()
        engine.saver.start(folder, 2 * turn + 2, state, "{}")
        stall.append(time.perf_counter() - began)
        same_step = marker(whole)
        while engine.saver.poll() is None:
            beside.append(timed_step(engine, batch))
        write.append(time.perf_counter() - began)
        other = step_folder(folder, 2 * turn + 2)
        same &= marker(other) == same_step
        for saved in (whole, other):
            shutil.rmtree(saved)
    size = sum(entry["bytes"] for entry in same_step.values())
    ratios = [a / b for a, b in zip(stall[1:], sync[1:], strict=True)]
    return {
        "async_stall_ratio": statistics.median(ratios),
        "sync_s": statistics.median(sync[1:]),
        "stall_s": statistics.median(stall[1:]),
        "write_s": statistics.median(write[1:]),
        "slowdown": statistics.median(beside) / statistics.median(plain) if beside else None,
        "bytes": size,
        "identical": same,
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="base", help="name in conf/model")
    parser.add_argument("--saves", type=int, default=5, help="counted turns")
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    options = parser.parse_args()
    engine = make_engine(options.size)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = measure(engine, Path(folder), options.saves)
    print(json.dumps({**result, "size": options.size, "torch": torch.__version__}))
    close_world()
    return 0


if __name__ == "__main__":
    end_process(main())
