"""How long our LAMB step takes beside torch's fused AdamW on the same tensors, and what memory it needs.

    python tools/bench_optim.py [--size base] [--device cpu] [--threads 2] [--rounds 15] [--deepspeed]

Tensors: those of the real model, in its two groups, with random gradients. One step of each contender
in turn, A B A B, in one process; the ratio is the median over the rounds of their times. Contenders:
LAMB (ours), fused AdamW (torch), and for orientation the public LAMB of `pytorch_optimizer` and, with
--deepspeed, DeepSpeed's AdamW (FusedAdam on a GPU, else CPUAdam: its operator is built on first use,
minutes). Then, in processes of their own: the peak memory of a run of our steps over what the process
had before its tensors, in bytes a parameter (weights, gradient, moments, temporaries); and the seconds
that compiling adds to the first step, with an empty and with a filled cache. The last line is JSON.

Bytes that must move a parameter and step, fp32: AdamW reads 4 numbers and writes 3, LAMB reads 6 and
writes 4 (u, made in the first pass, waits for the trust ratio): a ratio of 10 / 7 = 1.43 where memory
is the limit. `bytes_bound` is 16 bytes and a buffer as large as the largest tensor.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from roberta_dist.config.load import compose
from roberta_dist.config.optim import Backend, OptimConfig
from roberta_dist.config.optim import Optimizer as Name
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.model.encoder import RobertaForPretraining
from roberta_dist.model.init import init_weights
from roberta_dist.optim import lamb as lamb_module
from roberta_dist.optim.build import build_optimizer
from roberta_dist.optim.groups import parameter_groups
from roberta_dist.units import KIB, MIB

VOCABULARY = 50_265
LR = 1e-6
WARMUP = 2
CONTENDERS = ("lamb", "adamw", "public_lamb", "deepspeed_adamw")


def make_model(size: str, device: torch.device) -> nn.Module:
    """The model with random gradients."""
    config = compose("pretrain", PretrainConfig, [f"model={size}"])
    model = RobertaForPretraining(config.model, config.kernels, VOCABULARY)
    init_weights(model, 1)
    model.to(device)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter).mul_(1e-3)
    return model


def make_optimizer(name: str, model: nn.Module, device: torch.device) -> Optimizer:
    """One contender, with a learning rate that leaves the weights about where they are."""
    if name == "public_lamb":
        from pytorch_optimizer import Lamb as PublicLamb

        groups = parameter_groups(model.named_parameters(), OptimConfig())
        made: Optimizer = PublicLamb(groups, lr=LR, betas=(0.9, 0.98), weight_decouple=False)
        return made
    rule = Name.lamb if name == "lamb" else Name.adamw
    backend = Backend.deepspeed if name == "deepspeed_adamw" else Backend.torch
    optimizer = build_optimizer(model, OptimConfig(name=rule, backend=backend), device)
    for group in optimizer.param_groups:
        group["lr"] = LR
    return optimizer


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that a clock reads what was done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed_step(optimizer: Optimizer, device: torch.device) -> float:
    """Seconds of one update."""
    synchronize(device)
    began = time.perf_counter()
    optimizer.step()
    synchronize(device)
    return time.perf_counter() - began


def graphs() -> int:
    """How many times something was compiled in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def time_contenders(
    names: list[str], size: str, device: torch.device, rounds: int
) -> dict[str, list[float]]:
    """Seconds of every step of each contender, over the same weights and gradients, in turns."""
    model = make_model(size, device)
    optimizers = {name: make_optimizer(name, model, device) for name in names}
    for optimizer in optimizers.values():
        for _ in range(WARMUP):
            optimizer.step()
    compiled = graphs()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, optimizer in optimizers.items():
            seconds[name].append(timed_step(optimizer, device))
    assert graphs() == compiled, "a step after the first was compiled again"
    return seconds


def memory(field: str) -> int:
    """Bytes of this process, from Linux: VmRSS held now, VmHWM the most since the last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * KIB
    raise KeyError(field)


def reset_peak() -> None:
    """Let VmHWM start again from what is held now."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes_per_parameter(name: str, size: str, device_name: str, threads: int) -> float:
    """Peak over what was held before the tensors, with kernels compiled before."""
    torch.set_num_threads(threads)
    device = torch.device(device_name)
    compose("pretrain", PretrainConfig, [f"model={size}"])
    warm_up = nn.Linear(lamb_module.COMPILED_FROM // 1024, 1024, device=device)
    for parameter in warm_up.parameters():
        parameter.grad = torch.ones_like(parameter)
    make_optimizer(name, warm_up, device).step()
    del warm_up, parameter
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    else:
        before = memory("VmRSS")
    model = make_model(size, device)
    if device.type == "cpu":
        reset_peak()  # making the weights is not what is measured
    optimizer = make_optimizer(name, model, device)
    for _ in range(WARMUP):
        optimizer.step()
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = memory("VmHWM")
    return (peak - before) / sum(p.numel() for p in model.parameters())


def compile_seconds(device_name: str) -> float:
    """Seconds the first step takes beyond the second, for a tensor that is large enough to compile."""
    device = torch.device(device_name)
    layer = nn.Linear(lamb_module.COMPILED_FROM // 1024, 1024, device=device)
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = make_optimizer("lamb", layer, device)
    return timed_step(optimizer, device) - timed_step(optimizer, device)


def _child(pipe: Any, function: Callable[..., float], arguments: tuple[Any, ...]) -> None:
    pipe.send(function(*arguments))


def in_a_process(function: Callable[..., float], *arguments: Any) -> float:
    """What `function` returns in a process of its own."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_child, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    value = float(mine.recv())
    process.join()
    return value


def cold_and_warm_compile(device_name: str) -> tuple[float, float]:
    """Seconds of compiling with an empty cache, then with the cache that left."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        cold = in_a_process(compile_seconds, device_name)
        warm = in_a_process(compile_seconds, device_name)
        del os.environ["TORCHINDUCTOR_CACHE_DIR"]
    return cold, warm


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("mini", "base", "large"), default="base")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--deepspeed", action="store_true", help="DeepSpeed's AdamW too")
    return parser.parse_args()


def main() -> int:
    """Print a table and a JSON line."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    names = [name for name in CONTENDERS if arguments.deepspeed or name != "deepspeed_adamw"]
    seconds = time_contenders(names, arguments.size, device, arguments.rounds)
    print(f"{arguments.size} on {arguments.device}, {arguments.threads} threads, one step:")
    ratios = {}
    for name in names:
        pairs = zip(seconds[name], seconds["adamw"], strict=True)
        ratios[name] = statistics.median(mine / theirs for mine, theirs in pairs)
        middle, best = statistics.median(seconds[name]), min(seconds[name])
        print(f"  {name:<16}{middle * 1e3:9.1f} ms  (best {best * 1e3:.1f})  ×{ratios[name]:.2f}")
    peaks = {
        name: in_a_process(
            peak_bytes_per_parameter, name, arguments.size, arguments.device, arguments.threads
        )
        for name in ("lamb", "adamw")
    }
    elements = [p.numel() for p in make_model(arguments.size, torch.device("meta")).parameters()]
    bound = 16 + 4 * max(elements) / sum(elements)
    print(
        f"  {sum(elements):,} parameters; a buffer of the largest: {4 * max(elements) / MIB:.0f} MiB"
    )
    print(f"  peak bytes a parameter: {peaks} (bound {bound:.2f})")
    cold, warm = cold_and_warm_compile(arguments.device)
    result = {
        "ratio_adamw": ratios["lamb"],
        "bytes_per_param": peaks["lamb"],
        "bytes_bound": bound,
        "lamb_ms": statistics.median(seconds["lamb"]) * 1e3,
        "adamw_ms": statistics.median(seconds["adamw"]) * 1e3,
        **{f"ratio_{name}": ratios[name] for name in names if name not in ("lamb", "adamw")},
        "compile_cold_s": cold,
        "compile_warm_s": warm,
    }
    print(json.dumps({key: round(value, 3) for key, value in result.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
