"""The two arms of a large-batch comparison at equal tokens, as real runs of the command.

`conf/model/tiny` as it stands, rows of 64 tokens, a vocabulary of 8,192 over the documentation of
the installed packages. 30 x 8192 = 960 x 256 rows, 15.7 million tokens each.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

SMALL_LR = {"adamw": 1e-3, "lamb": 1e-2}
"""Peak learning rate at 256 sequences."""
SQUARE_ROOT = math.sqrt(8192 / 256)
"""You et al. 2020 (§4): the rate grows with the square root of the batch."""
ARMS = {
    "adamw": {
        "optim.lr": SMALL_LR["adamw"], "train.global_batch_size": 256,
        "schedule.max_steps": 960, "schedule.warmup_steps": 96,
    },
    "lamb": {
        "optim.lr": SMALL_LR["lamb"] * SQUARE_ROOT, "train.global_batch_size": 8192,
        "schedule.max_steps": 30, "schedule.warmup_steps": 3,
    },
}  # fmt: skip
COMMON = [
    "model=tiny", "data.sequence_length=64", "train.micro_batch_size=128",
    "evaluate.max_rows=2048", "evaluate.every_steps=10000", "checkpoint.every_steps=10000",
    "track.wandb=disabled", "track.tensorboard=false", "track.progress=false",
]  # fmt: skip


def told(name: str) -> str:
    """The arm in a few words."""
    arm = ARMS[name]
    return (
        f"{name}, {arm['schedule.max_steps']} steps of {arm['train.global_batch_size']} sequences, "
        f"lr {arm['optim.lr']:.4g}"
    )


def _command(verb: str, *settings: str) -> None:
    subprocess.run([sys.executable, "-m", "roberta_dist.cli", verb, *settings], check=True)


def corpus(folder: Path) -> Path:
    """The prepared documentation, once."""
    target = folder / "corpus"
    if not (target / "train" / "manifest.json").is_file():
        _command("prepare", f"output={target}", "tokenizer.vocab_size=8192", "progress=false")
    return target


def held_out_loss(folder: Path, name: str, seed: int) -> float:
    """Train one arm on this machine's cores; its loss at the end, nats."""
    run_dir = folder / f"{name}{seed}"
    arm = [f"{key}={value}" for key, value in ARMS[name].items()]
    _command(
        "launch", f"run_dir={run_dir}", f"data.path={corpus(folder)}", f"optim.name={name}",
        f"train.seed={seed}", "cluster.workers_per_node=2", *COMMON, *arm,
    )  # fmt: skip
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [float(line["eval_loss"]) for line in lines if "eval_loss" in line][-1]
