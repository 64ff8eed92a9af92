"""Start real ranks: one Python process each, joined over gloo, as the deepspeed launcher would."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from roberta_dist.config.data import MaskingConfig
from roberta_dist.config.model import KernelsConfig, ModelConfig
from roberta_dist.config.optim import OptimConfig
from roberta_dist.corpus.manifest import SpecialTokens
from roberta_dist.engine.setup import close_world, init_world
from roberta_dist.model.encoder import RobertaForPretraining
from roberta_dist.model.init import init_weights
from roberta_dist.runtime.leave import end_process
from roberta_dist.runtime.world import World, detect_world
from roberta_dist.stream.batch import Batch, make_batch
from roberta_dist.stream.masking import mask_rule

MODEL = ModelConfig(
    num_layers=2, hidden_size=32, ffn_size=64, num_heads=2, max_positions=32,
    dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
OPTIM = OptimConfig(lr=1e-2)
LR = 1e-2
ROWS = 8
SPECIAL = SpecialTokens(bos=0, pad=1, eos=2, unk=3, mask=99)
VOCAB = 100


def make_model(pairs: bool = False) -> RobertaForPretraining:
    """The model every test here starts from; with the next-sentence head where rows are pairs."""
    model = RobertaForPretraining(MODEL, KernelsConfig(), VOCAB, next_sentence=pairs)
    init_weights(model, 1)
    return model


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(
    script: Path, world_size: int, arguments: list[str], logs: Path, timeout: int = 300
) -> tuple[list[int], str]:
    """Run `script` on `world_size` ranks; returns their exit codes and the ends of their logs."""
    processes, paths = [], [logs.with_suffix(f".rank{rank}.log") for rank in range(world_size)]
    port = str(free_port())
    for rank, path in enumerate(paths):
        environ = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(
                [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
            ),
        }
        with open(path, "w") as log:
            command = [sys.executable, str(script), *arguments]
            processes.append(
                subprocess.Popen(command, env=environ, stdout=log, stderr=subprocess.STDOUT)
            )
    try:
        codes = [process.wait(timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    left = sorted(Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*_{port}_*"))
    assert not left, f"shared memory is left behind: {left}"
    return codes, "\n".join(path.read_text()[-3000:] for path in paths)


def run_world(script: Path, world_size: int, arguments: dict[str, Any], timeout: int = 300) -> Any:
    """Run `script` on `world_size` ranks; returns what rank 0 wrote to arguments["output"]."""
    output = Path(arguments["output"])
    codes, logs = run_ranks(script, world_size, [json.dumps(arguments)], output, timeout)
    assert codes == [0] * world_size, logs
    return json.loads(output.read_text())


def rank_main(work: Callable[[dict[str, Any], World, torch.device], Any]) -> NoReturn:
    """What `run_world` starts: `work` on the script's argument; rank 0 writes what it returns."""
    torch.set_num_threads(1)
    arguments = json.loads(sys.argv[1])
    world = detect_world()
    results = work(arguments, world, init_world(world, 300))
    if world.is_main:
        Path(arguments["output"]).write_text(json.dumps(results))
    close_world()
    end_process(0)


def random_batch(
    row_ids: list[int],
    length: int = 24,
    seed: int = 0,
    probability: float = 0.15,
    pairs: bool = False,
) -> Batch:
    """Rows of eight different tokens, of varying lengths, so that a few steps learn something; a row's content depends only on its id."""
    rule = mask_rule(MaskingConfig(probability=probability), seed, "train", VOCAB, SPECIAL)
    rows = []
    for row in row_ids:
        rng = np.random.default_rng((seed, row + 1))
        body = 4 + rng.integers(8, size=int(rng.integers(length // 2, length - 1)))
        body = body if row >= 0 else body[:0]
        rows.append(np.concatenate(([SPECIAL.bos], body, [SPECIAL.eos])).astype(np.uint16))
    batch = make_batch(rows, np.array(row_ids, dtype=np.int64), rule)
    if not pairs:
        return batch
    labels = [-1 if row < 0 else int(rows[i][1]) % 2 for i, row in enumerate(row_ids)]
    return replace(batch, nsp_labels_R=np.array(labels, dtype=np.int8))


def pair_rows(first: int, count: int) -> list[int]:
    """`count` row ids from `first`; the last is a weight-0 row, so that ranks differ in pairs."""
    return [*range(first, first + count - 1), -1]
