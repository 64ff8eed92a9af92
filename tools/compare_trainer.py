"""Loss curves and wall time beside Hugging Face's Trainer: `python tools/compare_trainer.py WORK [KEY=VALUE ...]`.

For each of three seeds `roberta-dist launch` trains experiment=quickstart (2 layers of 128, a vocabulary
of 8,192, 500 steps of 32 x 128 tokens) in one worker, and tools/hf_trainer.py trains the same rows, masks,
initial weights and hyperparameters with transformers.Trainer in one process: the same threads, no
evaluation, no saving but ours at the end. KEY=VALUE changes the run (`model=mini`). What differs is the
dropout that is drawn, so that curves can be compared within the noise of a seed, and the time.

WORK keeps the corpus, the runs and result.json; what is complete there is not done again, so new figures want
an empty folder, and a machine that does nothing else. Prints result.json without its curves, and draws
docs/loss_vs_trainer.png.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from plot_trainer import PICTURE, draw

from roberta_dist.config.load import compose, flatten, load_yaml
from roberta_dist.config.roots import LaunchConfig, PretrainConfig
from roberta_dist.errors import ConfigError, RobertaDistError
from roberta_dist.launcher.machine import available_cores
from roberta_dist.runtime.files import atomic_write, write_json
from roberta_dist.runtime.rundir import RunPaths, is_done

ROOT = Path(__file__).resolve().parents[1]
SEEDS = (1, 2, 3)
WINDOW = 50
"""Steps over which losses are averaged before they are compared."""
PREPARE = ("corpus=quickstart", "tokenizer.vocab_size=8192", "tokenizer.train_mib=16")
COMMON = (
    "experiment=quickstart",
    "train.micro_batch_size=32",
    "evaluate.every_steps=0",
    "checkpoint.every_steps=1000000",
    "cluster.workers_per_node=1",
    "track.wandb=disabled",
    "track.tensorboard=false",
    "track.progress=false",
)
"""The quickstart with its batch in one piece, and with nothing beside the steps."""

Curves = NDArray[np.float64]
"""Loss by seed and step, nats a masked token: [S, N]."""


def command(*words: str, log: Path, threads: int) -> None:
    """Run a Python command with its output in `log`.

    Raises:
        RobertaDistError: it failed.
    """
    environ = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with open(log, "w") as output:
        done = subprocess.run([sys.executable, *words], env=environ, stdout=output, stderr=output)
    if done.returncode:
        raise RobertaDistError(
            f"`python {' '.join(words)}` ended with {done.returncode}", f"read {log}"
        )


def prepared(work: Path, *overrides: str) -> Path:
    """The quickstart's corpus, or one that `overrides` make of it, made once."""
    corpus = work / "corpus"
    if not (corpus / "train" / "manifest.json").is_file():
        words = ("-m", "roberta_dist.cli", "prepare", *PREPARE, *overrides, f"output={corpus}")
        command(*words, "progress=false", log=work / "prepare.log", threads=available_cores())
    return corpus


def train_ours(run_dir: Path, settings: Sequence[str], threads: int) -> None:
    """A run by `launch`, unless it is there; one that was cut short begins anew.

    Raises:
        ConfigError: a run of other settings is there.
    """
    config, paths = compose("launch", LaunchConfig, settings).run, RunPaths(run_dir)
    if paths.config_yaml.is_file():
        there = flatten(load_yaml(PretrainConfig, paths.config_yaml))
        other = sorted(key for key, value in flatten(config).items() if there[key] != value)
        if other:
            raise ConfigError(f"{run_dir} differs in {', '.join(other)}", "give an empty folder")
    if is_done(paths, config.schedule.max_steps):
        return
    if run_dir.exists():
        shutil.rmtree(run_dir)
    words = ("-m", "roberta_dist.cli", "launch", *settings)
    command(*words, log=run_dir.parent / "ours.log", threads=threads)


def our_curve(run_dir: Path) -> tuple[list[float], float]:
    """Loss of every step, and seconds from where the loop begins to the last line of its metrics."""
    paths = RunPaths(run_dir)
    lines = [json.loads(line) for line in paths.metrics.read_text().splitlines()]
    seconds = paths.metrics.stat().st_mtime - paths.attempts_log.stat().st_mtime
    return [line["loss"] for line in lines if "loss" in line], seconds


def train_theirs(run_dir: Path, threads: int) -> dict[str, Any]:
    """What tools/hf_trainer.py tells, trained as `run_dir` says unless it was."""
    result = run_dir.parent / "theirs.json"
    if not result.is_file():
        words = (str(ROOT / "tools" / "hf_trainer.py"), str(run_dir), str(result))
        command(*words, log=run_dir.parent / "theirs.log", threads=threads)
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def windows(losses: Curves) -> Curves:
    """Means over WINDOW steps: [S, windows]."""
    parts = np.array_split(losses, max(1, losses.shape[1] // WINDOW), axis=1)
    return np.stack([part.mean(axis=1) for part in parts], axis=1)


def compare(ours: Curves, theirs: Curves) -> dict[str, Any]:
    """How far the mean curves are apart, beside how far seeds are apart; of the last window and of all.

    A window's spread is the range over seeds, the smaller of both sides. That of three seeds is itself
    noisy (they may happen to lie close together), so the noise that every window's difference is held
    to is pooled: the median of the spreads.
    """
    mine, others = windows(ours), windows(theirs)
    difference = np.abs(mine.mean(axis=0) - others.mean(axis=0))
    spread = np.minimum(np.ptp(mine, axis=0), np.ptp(others, axis=0))
    noise = float(np.median(spread))
    return {
        "difference": float(difference[-1]),
        "largest_difference": float(difference.max()),
        "noise": noise,
        "spread": float(spread[-1]),
        "differences": difference.tolist(),
        "spreads": spread.tolist(),
        "overlap": bool((difference <= noise).all()),
    }


def described(run_dir: Path, vocab_size: int, threads: int) -> str:
    """The size of a run in words."""
    config = load_yaml(PretrainConfig, RunPaths(run_dir).config_yaml)
    model, data = config.model, config.data
    return (
        f"{model.num_layers} layers of {model.hidden_size}, vocabulary {vocab_size:,}, "
        f"{config.schedule.max_steps} steps of {config.train.global_batch_size} x "
        f"{data.sequence_length} tokens, {threads} threads"
    )


def curves(
    work: Path, overrides: Sequence[str] = (), seeds: Sequence[int] = SEEDS
) -> dict[str, Any]:
    """Train both sides with every seed, in turns, and compare; also left in WORK/result.json.

    Returns:
        `difference` of the mean losses and `spread` of a seed over the last 50 steps, nats;
        `overlap`, whether the `largest_difference` in any 50 steps is within `noise`, the median of the
        spreads in 50 steps; `wall_ratio`, ours ÷ theirs, the median of the seeds; `ours_s`, `hf_s`,
        medians; `size` in words; and more.

    Raises:
        RobertaDistError: a command failed, or WORK holds runs of other settings.
    """
    work, threads = work.absolute(), available_cores()
    work.mkdir(parents=True, exist_ok=True)
    corpus = prepared(work)
    ours, theirs, seconds = [], [], []
    for seed in seeds:
        run_dir = work / f"seed{seed}" / "ours"
        run_dir.parent.mkdir(exist_ok=True)
        settings = [
            *COMMON, *overrides, f"cluster.threads_per_worker={threads}",
            f"train.seed={seed}", f"data.path={corpus}", f"run_dir={run_dir}",
        ]  # fmt: skip
        train_ours(run_dir, settings, threads)
        found = train_theirs(run_dir, threads)
        losses, took = our_curve(run_dir)
        ours.append(losses)
        theirs.append(found["loss"])
        seconds.append((took, found["seconds"]))
        print(f"seed {seed}: ours {took:.1f} s, Trainer {found['seconds']:.1f} s", flush=True)
    result = {
        **compare(np.array(ours), np.array(theirs)),
        "wall_ratio": statistics.median(mine / other for mine, other in seconds),
        "ours_s": statistics.median(mine for mine, _ in seconds),
        "hf_s": statistics.median(other for _, other in seconds),
        "size": described(run_dir, found["vocab_size"], threads),
        "trainer": found["trainer"],
        "ours": ours,
        "theirs": theirs,
    }
    write_json(work / "result.json", result)
    return result


def main() -> int:
    """Compare, print a JSON line and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="folder of the corpus, the runs and the result")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE of `roberta-dist launch`")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--output", type=Path, default=PICTURE, help="PNG to write")
    arguments = parser.parse_args()
    try:
        result = curves(arguments.work, arguments.overrides, arguments.seeds)
    except RobertaDistError as error:
        print(f"tools/compare_trainer.py: {error}", file=sys.stderr)
        return error.exit_code
    atomic_write(arguments.output, draw(result))
    print(json.dumps({k: v for k, v in result.items() if k not in ("ours", "theirs")}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
