"""Acceptance of the main job: `bash launch/test.sh --acceptance main_job [NUMBER ...]`.

Runs each point of the list on real input and prints a line with its figure; exit code 1 if one
fails. Points 1 and 2 clone the committed state and install it anew, so they take minutes.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
for folder in ("distributed", "integration", "parity", "acceptance/support"):
    sys.path.insert(0, str(ROOT / "tests" / folder))

import run_support
import test_model_parity as parity
import world_support
from points import run_points, say

from roberta_dist.checkpoint.reader import latest_checkpoint, load_weights
from roberta_dist.config.data import DataConfig, MaskingConfig
from roberta_dist.corpus.manifest import SpecialTokens
from roberta_dist.optim.groups import parameter_groups
from roberta_dist.runtime.world import World
from roberta_dist.stream.loader import RankReader
from roberta_dist.stream.masking import apply_mask, mask_rule
from roberta_dist.stream.masking_torch import apply_mask_torch
from roberta_dist.stream.open import open_stream
from roberta_dist.stream.tensors import to_tensors

ZERO_WORKER = ROOT / "tests" / "distributed" / "zero_worker.py"
WORK = Path(tempfile.mkdtemp(prefix="main_job-"))
CPU = torch.device("cpu")


def clean_environment() -> dict[str, str]:
    """The environment of a new shell: nothing of this virtual environment."""
    dropped = {"VIRTUAL_ENV", "PYTHONPATH", "TORCH_EXTENSIONS_DIR"}
    kept = {key: value for key, value in os.environ.items() if key not in dropped}
    inside = str(ROOT / ".venv" / "bin")
    parts = kept["PATH"].split(os.pathsep)
    return kept | {"PATH": os.pathsep.join(part for part in parts if part != inside)}


def clone(name: str) -> Path:
    folder = WORK / name
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    return folder


def logged(command: list[str], folder: Path, log: Path) -> tuple[int, str]:
    with open(log, "wb") as output:
        done = subprocess.run(
            command, cwd=folder, env=clean_environment(), stdout=output, stderr=output, check=False
        )
    return done.returncode, log.read_text(errors="replace")


def verb(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "roberta_dist.cli", *arguments],
        capture_output=True, text=True, env=os.environ | environment, check=False, timeout=900,
    )  # fmt: skip


def quickstart() -> bool:
    """1: a fresh clone, nothing installed."""
    folder = clone("quickstart")
    code, text = logged(["bash", "launch/quickstart.sh"], folder, WORK / "quickstart.log")
    if code:
        return say("1", False, f"quickstart.sh exit {code}; see {WORK}/quickstart.log")
    minutes, seconds = map(
        int, re.findall(r"done in (\d+) min (\d+) s after installation", text)[-1]
    )
    loss = float(re.findall(r"held-out loss +([\d.]+) nats", text)[-1])
    entropy = float(re.findall(r"held-out unigram entropy +([\d.]+) nats", text)[-1])
    counts = json.loads((folder / "corpora/quickstart/prepare.json").read_text())
    megabytes = float(re.findall(r"read [\d,]+ documents, ([\d.]+) MB", text)[-1])
    use = (
        "import sys; from transformers import pipeline; "
        "fill = pipeline('fill-mask', model=sys.argv[1]); "
        "print(fill('Return a list of <mask>.')[0]['token_str'])"
    )
    python = str(folder / ".venv" / "bin" / "python")
    filled = subprocess.run(
        [python, "-c", use, str(folder / "runs/quickstart/export")],
        capture_output=True, text=True, env=clean_environment() | {"HF_HUB_OFFLINE": "1"}, check=False,
    )  # fmt: skip
    taken = 60 * minutes + seconds
    again = time.monotonic()
    code, _ = logged(["bash", "launch/quickstart.sh"], folder, WORK / "again.log")
    again = time.monotonic() - again
    ok = taken <= 480 and megabytes >= 20 and loss < entropy and filled.returncode == 0 and not code
    return say(
        "1", ok and bool(counts),
        f"exit 0; job {taken} s after installation (≤ 480); {megabytes} MB of text (≥ 20); held-out "
        f"loss {loss} < unigram entropy {entropy}; pipeline fills {filled.stdout.strip()!r}; "
        f"second start {again:.0f} s",
    )  # fmt: skip


def suite() -> bool:
    """2: the whole suite on another fresh clone."""
    folder = clone("suite")
    began = time.monotonic()
    code, _ = logged(["bash", "launch/setup.sh"], folder, WORK / "setup.log")
    installed = time.monotonic()
    code, text = logged(["bash", "launch/test.sh"], folder, WORK / "suite.log")
    took = time.monotonic() - installed
    closing = (text.strip().splitlines() or ["nothing"])[-1]
    return say(
        "2", code == 0 and took <= 600,
        f"exit {code}; suite {took:.0f} s (≤ 600) after set-up {installed - began:.0f} s; {closing}",
    )  # fmt: skip


def order_and_masks() -> bool:
    """3, first half: rows and masks of a real corpus."""
    corpus = run_support.prepare_corpus(WORK / "order")
    compared = 0
    for batch_size in (240, 256):
        data = DataConfig(path=str(corpus), sequence_length=64)
        stream = open_stream(data, MaskingConfig(), 1, batch_size, progress=False)
        for step in (*range(21), 5000):
            seen = []
            for size in (1, 2, 3, 5):
                rows = {}
                for rank in range(size):
                    reader = RankReader(stream, World(rank, size, rank), 16)
                    for batch in reader.micro_batches(step * batch_size):
                        for i, row in enumerate(batch.row_ids_R):
                            a, b = batch.cu_seqlens[i : i + 2]
                            if row >= 0:
                                rows[int(row)] = batch.tokens_T[a:b].tobytes()
                    reader.close()
                seen.append(rows)
            if any(rows != seen[0] for rows in seen) or len(seen[0]) != batch_size:
                return say("3 order", False, f"B={batch_size} step {step} differs")
            compared += batch_size * len(seen)
    ok = say("3 order", True, f"{compared} masked rows equal for world 1, 2, 3, 5, B 240 and 256")
    rule = mask_rule(MaskingConfig(), 1, "train", 50_265, SpecialTokens(0, 1, 2, 3, 50_264))
    tokens = np.random.default_rng(0).integers(4, 50_264, 1_000_000).astype(np.uint16)
    cu_seqlens, rows_R = np.arange(0, 1_000_001, 500), np.arange(2000)
    ours = apply_mask(rule, tokens, cu_seqlens, rows_R)
    theirs = apply_mask_torch(
        rule, *(torch.from_numpy(x.astype(np.int64)) for x in (tokens, cu_seqlens, rows_R))
    )
    same = all(
        np.array_equal(left.astype(np.int64), right.numpy())
        for left, right in zip((ours.tokens_T, ours.index_M, ours.labels_M), theirs, strict=True)
    )
    now, chosen = ours.tokens_T[ours.index_M], len(ours.index_M)
    shares = {
        "selected": (chosen / 1e6, 0.15, 1e6),
        "mask": ((now == 50_264).mean(), 0.8, chosen),
        "random": (((now != 50_264) & (now != ours.labels_M)).mean(), 0.1, chosen),
        "kept": ((now == ours.labels_M).mean(), 0.1, chosen),
    }
    sigmas = {k: abs(x - p) / (p * (1 - p) / n) ** 0.5 for k, (x, p, n) in shares.items()}
    figures = ", ".join(f"{k} {x:.4f} ({sigmas[k]:.1f}σ)" for k, (x, _, _) in shares.items())
    return (
        say("3 masks", same and max(sigmas.values()) < 3, f"numpy = torch {same}; {figures}") and ok
    )


def zero() -> bool:
    """3, second half, 5 and the elastic half of 6: real ranks against plain torch."""
    tasks = {
        "traces": {"stages": [0, 1, 2, 3], "steps": 20},
        "gradients": {"splits": [[0, 2], [2, 2]]},
        "small_gradients": {},
        "checkpoints": {"checkpoints": str(WORK), "save": [1], "load": []},
    }
    two = world_support.run_world(ZERO_WORKER, 2, {"output": str(WORK / "two"), "tasks": tasks})
    tasks = {
        "gradients": {"splits": [[0, 8], [0, 4]]},
        "checkpoints": {"checkpoints": str(WORK), "save": [], "load": [[1, 3], [1, 0]]},
    }
    one = world_support.run_world(ZERO_WORKER, 1, {"output": str(WORK / "one"), "tasks": tasks})
    model = world_support.make_model()
    groups = parameter_groups(model.named_parameters(), world_support.OPTIM)
    optimizer = torch.optim.AdamW(
        groups, lr=world_support.LR, betas=(0.9, 0.98), eps=1e-6, foreach=False
    )
    trace, gradient = [], {}
    for step in range(20):
        batch = world_support.random_batch(list(range(8 * step, 8 * step + 8)))
        loss = model(**to_tensors(batch, CPU)) / len(batch.masked_index_M)
        optimizer.zero_grad()
        loss.backward()
        gradient = gradient or {n: p.grad.double().clone() for n, p in model.named_parameters()}
        optimizer.step()
        trace.append(loss.item())
    worst = {}
    for name in ("one.grad-1-0-8", "one.grad-1-0-4", "two.grad-2-0-2", "two.grad-2-2-2"):
        found = torch.load(WORK / f"{name}.pt", weights_only=True)
        worst[name[-5:]] = max(
            float((found[n] - g).norm() / g.norm()) for n, g in gradient.items() if g.norm() > 1e-9
        )
    ok = say("3 gradient", max(worst.values()) <= 1e-6, f"largest ‖g-g′‖/‖g‖ by world-stage-micro: "
             f"{ {k: f'{v:.1e}' for k, v in worst.items()} }")  # fmt: skip
    sums = two["small_gradients"]
    ok &= say(
        "3 bf16 sum", all(abs(v - 1.123046875) < 1e-6 for v in sums.values()), f"by stage: {sums}"
    )
    off = {
        stage: max(abs(a - b) / b for a, b in zip(found, trace, strict=True))
        for stage, found in two["traces"]["loss"].items()
    }
    ok &= say("5", max(off.values()) < 1e-6 and two["traces"]["sub_groups"] >= 3,
              f"20 steps against plain torch by stage: { {k: f'{v:.1e}' for k, v in off.items()} }; "
              f"{two['traces']['groups']} groups, {two['traces']['sub_groups']} sub-groups")  # fmt: skip
    saved = two["checkpoints"]["saved1"]
    moved = {
        name: max(abs(a - b) / b for a, b in zip(found, saved, strict=True))
        for name, found in one["checkpoints"].items()
    }
    return ok & say("6 elastic", max(moved.values()) < 1e-5, f"ZeRO-1 world 2 → world 1, by stage: "
                    f"{ {k: f'{v:.1e}' for k, v in moved.items()} }")  # fmt: skip


def model_parity() -> bool:
    """4: transformers' RobertaForMaskedLM, random weights, both ways."""
    figures = {"logits": 0.0, "loss": 0.0, "gradients": 0.0}
    for case in parity.CASES:
        config, vocab_size, lengths = case.values
        for ours_first in (True, False):
            found = parity.relative_differences(config, vocab_size, lengths, ours_first)
            figures = {key: max(figures[key], found[key]) for key in figures}
    ok = figures["logits"] <= 1e-5 and max(figures["loss"], figures["gradients"]) <= 1e-4
    shown = ", ".join(f"{key} {value:.1e}" for key, value in figures.items())
    return say("4", ok, f"largest relative difference over {2 * len(parity.CASES)} cases: {shown}")


def kill_and_resume() -> bool:
    """6: kill -9 of the whole job through `launch`, then the same command."""
    corpus = run_support.prepare_corpus(WORK / "resume")
    arguments = [*run_support.TINY, f"data.path={corpus}", "cluster.workers_per_node=2"]
    whole, killed = WORK / "whole", WORK / "killed"
    if verb("launch", f"run_dir={whole}", *arguments).returncode:
        return say("6", False, "the uninterrupted run failed")
    command = [sys.executable, "-m", "roberta_dist.cli", "launch", f"run_dir={killed}", *arguments]
    with open(WORK / "killed.log", "wb") as log:
        job = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 120
    while not any(line["step"] >= 17 for line in run_support.metrics(killed)):
        if time.monotonic() > deadline:
            return say("6", False, "step 17 was not reached")
        time.sleep(0.01)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    time.sleep(5)  # the workers notice that their launcher is gone
    reached = run_support.metrics(killed)[-1]["step"]
    code = verb("launch", f"run_dir={killed}", *arguments).returncode
    columns = run_support.deterministic(killed) == run_support.deterministic(whole)
    last = [latest_checkpoint(run) for run in (whole, killed)]
    weights = run_support.same_weights(*last)
    return say("6", code == 0 and columns and weights and reached < 40,
               f"killed at step {reached}; columns identical {columns}, weights identical {weights}")  # fmt: skip


def large_batch() -> bool:
    """7: 8192 × 128 through accumulation on two ranks, against 512."""
    corpus = run_support.prepare_corpus(WORK / "large")
    peaks = {}
    for batch_size in (512, 8192):
        run_dir = WORK / f"batch{batch_size}"
        done = verb(
            "launch", f"run_dir={run_dir}", f"data.path={corpus}", "model=tiny", "cluster.workers_per_node=2",
            "data.sequence_length=128", f"train.global_batch_size={batch_size}",
            "train.micro_batch_size=16", "schedule.max_steps=2", "schedule.warmup_steps=1",
            "evaluate.every_steps=0", "track.wandb=disabled", "track.tensorboard=false",
        )  # fmt: skip
        if done.returncode:
            return say("7", False, done.stderr[-500:])
        peaks[batch_size] = run_support.metrics(run_dir)[-1]["memory_mib"]
    ratio = peaks[8192] / peaks[512]
    return say("7", ratio <= 1.1, f"2 steps done; peak memory at step 2 {peaks[8192]:.0f} MiB against "
               f"{peaks[512]:.0f} MiB: ratio {ratio:.3f} (≤ 1.1)")  # fmt: skip


def bad_input() -> bool:
    """8: each fault with its exit code and the first line of its message."""
    corpus = run_support.prepare_corpus(WORK / "bad")
    run = [f"data.path={corpus}", *run_support.TINY, "schedule.max_steps=2", "schedule.warmup_steps=1",
           f"run_dir={WORK / 'bad_run'}"]  # fmt: skip
    text = WORK / "texts"
    text.mkdir()
    (text / "empty.txt").write_bytes(b"")
    out = f"output={WORK / 'never'}"
    (WORK / "file").write_text("")
    cases = [
        ("unknown key", 2, ["launch", "data.foo=3"]),
        ("unknown key with +", 2, ["launch", "+data.foo=3"]),
        ("wrong type", 2, ["launch", "train.seed=abc"]),
        ("impossible value", 2, ["launch", "masking.probability=1.5"]),
        ("row longer than the model", 2, ["launch", "data.sequence_length=1024"]),
        ("stage 0 with bf16", 2, ["launch", "engine.stage=0", "engine.precision=bf16"]),
        ("no such recipe", 2, ["launch", "experiment=nope"]),
        ("no corpus", 2, ["launch", f"data.path={WORK}/none", f"run_dir={WORK}/x"]),
        ("unwritable run folder", 3, ["launch", *run[:-1], f"run_dir={WORK}/file/run"]),
        ("more ranks than lanes", 2, ["launch", *run, "cluster.workers_per_node=2", "data.shuffle_mib=0.016"]),
        ("vocabulary over uint16", 2, ["prepare", "tokenizer.vocab_size=70000", out]),
        ("no documents", 2, ["prepare", "corpus=text", f"corpus.paths=[{text}]", out]),
        ("missing input", 2, ["prepare", "corpus=text", f"corpus.paths=[{WORK}/none]", out]),
    ]  # fmt: skip
    ok = True
    for name, expected, arguments in cases:
        done = verb(*arguments)
        lines = [line for line in (done.stderr + done.stdout).splitlines() if "WARNING" not in line]
        mine = [line for line in lines if line.startswith("roberta-dist") and "Ctrl-C" not in line]
        told = (mine or lines or [""])[0]
        ok &= say(f"8 {name}", done.returncode == expected, f"exit {done.returncode}: {told[:230]}")
    return ok & hostile_text() & planted_pickle(run) & full_disk(run)


def hostile_text() -> bool:
    """8: text that breaks tokenizers is prepared and counted."""
    folder = WORK / "hostile"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"bad \xff\xfe bytes here\n\n" + b"</s> and <mask> as text\n")
    (folder / "b.txt").write_bytes(b" " * 3_000_000 + b"x\n")
    (folder / "c.txt").write_bytes(b"y" * 10_000_000)
    (folder / "d.txt").write_text("nul \0 inside\n\n" + "中文文本。" * 200)
    (folder / "e.txt").write_text("\n\n".join(f"plain document number {i}" for i in range(400)))
    (folder / "f.txt").write_bytes(b"")
    done = verb(
        "prepare", "corpus=text", f"corpus.paths=[{folder}]", f"output={WORK / 'hostile_out'}",
        "tokenizer.vocab_size=400", "corpus.held_out_fraction=0.05", "corpus.pack_mib=0.25",
    )  # fmt: skip
    lines = [line.strip() for line in done.stdout.splitlines() if "documents" in line]
    return say("8 hostile text", done.returncode == 0, (lines or [done.stderr[-300:]])[-1])


class Planted:
    """A pickle that leaves a file behind when it is loaded."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {WORK}/EXECUTED",)


def planted_pickle(run: list[str]) -> bool:
    """8: a pickle in a checkpoint is refused, not executed; so is a flipped bit."""
    run_dir = WORK / "bad_run"
    verb("launch", *run)
    newest = latest_checkpoint(run_dir)
    assert newest is not None and load_weights(newest)
    shard = newest / "shards" / "rank_00000.safetensors"
    shard.write_bytes(pickle.dumps(Planted()))
    done = verb("export", f"run_dir={run_dir}")
    told = [line for line in done.stderr.splitlines() if line.startswith("roberta-dist")]
    executed = (WORK / "EXECUTED").exists()
    return say("8 planted pickle", done.returncode == 3 and not executed,
               f"exit {done.returncode}, executed {executed}: {(told or [''])[0][:200]}")  # fmt: skip


def full_disk(run: list[str]) -> bool:
    """8: a disk of 6 MiB, on which the third checkpoint or so finds no room."""
    disk = WORK / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)], check=True)
    try:
        every_step = [
            "schedule.max_steps=40",
            "checkpoint.every_steps=1",
            "checkpoint.keep_last=40",
        ]
        done = verb("launch", *run[:-1], *every_step, f"run_dir={disk / 'run'}")
        newest = latest_checkpoint(disk / "run")
        whole = newest is not None and bool(load_weights(newest))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    told = [line for line in done.stderr.splitlines() if "no space left" in line]
    return say("8 full disk", done.returncode == 3 and whole and bool(told),
               f"exit {done.returncode}, newest complete checkpoint readable {whole}: {(told or [''])[0][:200]}")  # fmt: skip


def readme() -> bool:
    """9: what the README must have."""
    text = (ROOT / "README.md").read_text()
    picture = ROOT / "docs" / "quickstart.png"
    wanted = ["bash launch/quickstart.sh", "bash launch/test.sh", "roberta-dist prepare", "static",
              "dynamic", "docs/quickstart.png", "  cli.py", "  engine/"]  # fmt: skip
    missing = [part for part in wanted if part not in text]
    folders = sorted(
        p.name for p in (ROOT / "roberta_dist").iterdir() if (p / "__init__.py").is_file()
    )
    missing += [name for name in folders if f"{name}/" not in text]
    size = picture.stat().st_size if picture.is_file() else 0
    return say(
        "9", not missing and size > 10_000, f"missing {missing or 'nothing'}; picture {size} bytes"
    )


POINTS = {
    "3": order_and_masks, "3z": zero, "4": model_parity, "6": kill_and_resume, "7": large_batch,
    "8": bad_input, "9": readme, "1": quickstart, "2": suite,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_points(POINTS, WORK))
