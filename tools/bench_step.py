"""How long one training step takes: ours, Hugging Face's, and the matrix products alone.

    python tools/bench_step.py --size base --seq 512 --device cpu [--threads 2] [--precision fp32]
                               [--rows N] [--steps N] [--hf-compile]

Four arms, each a process of its own, so that its peak memory is its own. They take turns, A B C D
A B C D, and wait on a pipe while another works; the first two turns are not counted. A figure in
seconds is a median over the turns, a ratio the median of the turns' ratios.

    ours      RobertaForPretraining with `kernels` as they are by default; optim/build's AdamW
    hf        transformers' RobertaForMaskedLM as Trainer runs it by default: sdpa, fused AdamW, an
              attention mask of ones, scores of the whole vocabulary at every position
    hf_best   the same without the mask, and with torch.compile: on a GPU always, on a CPU only
              with --hf-compile (try it: it may be slower there)
    ceiling   the matrix products that our model needs, forward and backward at their shapes, into
              buffers made before; no dropout, normalisation, GELU, loss or update

All have the same sizes (conf/model), vocabulary and dropout, and see the same masked rows: random
tokens in full rows, masked once by our own masking (`stream/masking.py`, 15 % of the tokens, 80/10/10)
and not by transformers' collator; what is predicted is `labels` for theirs, -100 elsewhere. A step is
forward, mean loss over the masked tokens, backward, update, and clearing of gradients. The gradient's
norm (our guard, Trainer's clipping) is in neither. On a GPU a turn is five steps after one that is not
counted, so that the host runs ahead as it does in training. `bf16`, the default on a GPU, is a bf16 model
updated through fp32 master weights in ours, as under ZeRO, torch.autocast in theirs, as in Trainer,
and bf16 buffers in the ceiling; DeepSpeed is not in it.

The last line is JSON: `tokens_per_s` (ours, all tokens of the rows); `ratio_hf`, `ratio_hf_best` (ours
over theirs, in tokens/s); `ceiling_fraction` (our FLOP/s over the ceiling's, both for the FLOPs our
model needs by `plan/flops.py`); `mfu` against what `mfu_against` names; `peak_memory_ratio` (ours over
hf; on a CPU of whole processes with their libraries); and what these come from, by arm.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
from typing import Any

import torch
from bench_optim import VOCABULARY
from step_arms import ARMS, Job, serve
from step_products import model_products
from tqdm import tqdm

from roberta_dist.plan.flops import training_flops

WARM_UP = 2
"""Turns that compile, allocate and fill caches."""
BATCH_TOKENS = {
    "cpu": {"tiny": 4096, "mini": 4096, "base": 2048, "large": 2048},
    "cuda": {"tiny": 65536, "mini": 65536, "base": 65536, "large": 32768},
}
"""Tokens of a batch without --rows: all arms fit a CPU of 24 GiB together, each fits a GPU of 80."""
DATASHEET_BF16 = {
    "H100 PCIe": 756.5e12,
    "H100 NVL": 835.5e12,
    "H100": 989.5e12,
    "H200 NVL": 835.5e12,
    "H200": 989.5e12,
    "A100": 312e12,
}
"""Dense bf16 FLOP/s by NVIDIA's datasheets, by what a device's name contains; the first match counts."""


class Arm:
    """An arm's process, as the parent sees it."""

    def __init__(self, name: str, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, name, job))
        self._process.start()
        theirs.close()

    def ask(self, question: str) -> Any:
        """The answer of `step_arms.serve`.

        Raises:
            SystemExit: the arm died.
        """
        try:
            self._pipe.send(question)
            return self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            code = self._process.exitcode
            hint = ": out of memory? give fewer --rows" if code == -9 else ""
            raise SystemExit(f"bench_step: arm {self.name} ended with code {code}{hint}") from None

    def close(self) -> None:
        """Hang up, on which the process ends, and wait for that."""
        self._pipe.close()
        self._process.join()


def take_turns(arms: list[Arm], steps: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of every counted step of each arm, with the matrix rates, and each arm's last loss."""
    seconds: dict[str, list[float]] = {arm.name: [] for arm in arms}
    rates: list[float] = []
    losses = {}
    with tqdm(total=(WARM_UP + steps) * len(arms), unit="step") as bar:
        for turn in range(WARM_UP + steps):
            for arm in arms:
                bar.set_description(arm.name)
                took, losses[arm.name] = arm.ask("step")
                if turn >= WARM_UP:
                    seconds[arm.name].append(took)
                bar.update()
            if turn >= WARM_UP:
                rates.append(arms[-1].ask("matrix_rate"))
    return {**seconds, "matrix_rate": rates}, losses


def ratio(over: list[float], under: list[float]) -> float:
    """Median of the turns' ratios."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def datasheet_peak(device_name: str, precision: str) -> tuple[str, float] | None:
    """(what it is, FLOP/s), or None where no datasheet is known here."""
    for card, peak in DATASHEET_BF16.items():
        if card in device_name and "MIG" not in device_name and precision == "bf16":
            return f"datasheet of {card}, dense bf16, {peak / 1e12} TFLOP/s", peak
    return None


def report(
    job: Job, found: dict[str, list[float]], losses: dict[str, float], facts: dict[str, Any]
) -> dict[str, Any]:
    """What the JSON line holds."""
    masked = len(job.batch().masked_index_M)
    flops = training_flops(job.model, VOCABULARY, [job.seq] * job.rows, masked)
    meta = torch.device("meta")
    products = model_products(job.model, VOCABULARY, job.rows, job.seq, masked, meta, job.dtype)
    ceiling_flops = sum(product.flops for product in products)
    medians = {arm: statistics.median(found[arm]) for arm in ARMS}
    rate = statistics.median(found["matrix_rate"])
    of_matrix = statistics.median(
        flops / took / at_once
        for took, at_once in zip(found["ours"], found["matrix_rate"], strict=True)
    )
    ours = facts["ours"]
    peak = datasheet_peak(ours["device"], job.precision)
    peaks = {arm: round(facts[arm]["peak_mib"]) for arm in ARMS}
    return {
        "tokens_per_s": job.rows * job.seq / medians["ours"],
        "ratio_hf": ratio(found["hf"], found["ours"]),
        "ratio_hf_best": ratio(found["hf_best"], found["ours"]),
        "ceiling_fraction": ratio(found["ceiling"], found["ours"]) * flops / ceiling_flops,
        "mfu": flops / medians["ours"] / peak[1] if peak else of_matrix,
        "mfu_against": peak[0] if peak else "a square matrix product of the same turn",
        "mfu_matrix": of_matrix,
        "peak_memory_ratio": peaks["ours"] / peaks["hf"],
        "step_s": medians,
        "step_s_range": {arm: [min(found[arm]), max(found[arm])] for arm in ARMS},
        "peak_mib": peaks,
        "loss": {arm: losses[arm] for arm in ARMS if arm != "ceiling"},
        "flops": flops,
        "ceiling_flops": ceiling_flops,
        "matrix_tflops": rate / 1e12,
        "masked_tokens": masked,
        **vars(job),
        "steps": len(found["ours"]),
        "device_name": ours["device"],
        "versions": ours["versions"],
        "git_commit": ours["git_commit"],
    }


def rounded(value: Any) -> Any:
    """Four significant digits of every float."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list) else value


def print_table(result: dict[str, Any]) -> None:
    """The arms in words, on stderr."""
    for arm, median in result["step_s"].items():
        low, high = result["step_s_range"][arm]
        line = f"{arm:8} {median:9.3f} s  ({low:.3f} - {high:.3f})  {result['peak_mib'][arm]:7} MiB"
        print(line, file=sys.stderr)


def parse_arguments() -> tuple[Job, int]:
    """The command line: what to compute, and how many counted turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=tuple(BATCH_TOKENS["cpu"]), default="base")
    parser.add_argument("--seq", type=int, choices=(128, 512), default=512)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rows", type=int, help="of the batch; default by size and device")
    parser.add_argument("--steps", type=int, default=7, help="counted turns")
    parser.add_argument("--threads", type=int, default=2, help="of each arm")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="cpu: fp32, cuda: bf16")
    parser.add_argument("--hf-compile", action="store_true", help="torch.compile hf_best on a CPU")
    options = parser.parse_args()
    rows = options.rows
    if rows is None:
        rows = BATCH_TOKENS[options.device][options.size] // options.seq
    if min(rows, options.steps, options.threads) < 1:
        parser.error("--rows, --steps and --threads must be ≥ 1")
    cuda = options.device == "cuda"
    if cuda and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here; use --device cpu")
    job = Job(
        size=options.size,
        seq=options.seq,
        rows=rows,
        device=options.device,
        precision=options.precision or ("bf16" if cuda else "fp32"),
        threads=options.threads,
        hf_compile=options.hf_compile or cuda,
    )
    return job, options.steps


def main() -> int:
    """Run the benchmark."""
    job, steps = parse_arguments()
    os.environ["OMP_NUM_THREADS"] = str(job.threads)  # of the processes started below
    arms = [Arm(name, job) for name in ARMS]
    try:
        found, losses = take_turns(arms, steps)
        facts = {arm.name: arm.ask("facts") for arm in arms}
    finally:
        for arm in arms:
            arm.close()
    result = rounded(report(job, found, losses, facts))
    print_table(result)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
