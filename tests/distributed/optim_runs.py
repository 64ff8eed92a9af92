"""What the suite and the acceptance list ask of optimizers over real ranks, and what to hold it to."""

from __future__ import annotations

import math
from pathlib import Path

import optim_worker
import torch
import world_support as support
from optim_reference import Reference, low_trace, trace

WORKER = Path(__file__).with_name("optim_worker.py")
LR = {"lamb": 5e-3, "adamw": 1e-3}
OPTIONS = {
    "prenormalize": True,
    "trust_clip": [0.01, 0.3],
    "nvlamb": True,
    "bias_correction": False,
}
"""Everything about LAMB that is not the default; the largest ratio is one that binds here."""


def run(name, stage, micro, steps, tag="", options=False, backend="auto", split_qkv=True, **more):
    """One run of `optim_worker`; its key says what it is, with `tag` where two would be alike."""
    told = [f"{key}={value}" for key, value in more.items() if key not in ("save", "load")]
    words = [name, f"zero{stage}", f"micro{micro}", *told, *["options"] * options, tag]
    words += ([] if backend == "auto" else [backend]) + ([] if split_qkv else ["fused qkv"])
    return {
        "key": " ".join(filter(None, words)), "stage": stage, "micro": micro, "steps": steps,
        "lr": LR[name], **more,
        "optim": {
            "name": name, "backend": backend, "split_qkv": split_qkv,
            **(OPTIONS if options else {}),
        },
    }  # fmt: skip


def start(world_size, runs, output, timeout=900):
    """Key → result of every run, all in one world."""
    return support.run_world(WORKER, world_size, {"output": str(output), "runs": runs}, timeout)


def reference(name, steps, dtype=torch.float64, **options):
    """Losses of one process, the whole batch at once."""
    torch.set_num_threads(1)
    model = optim_worker.make_model().to(dtype)
    batches = [support.random_batch(optim_worker.rows_of(step)) for step in range(steps)]
    return trace(model, Reference(model, name, **options), batches, LR[name])


def low_reference(name, steps, micro, ranks, dtype=torch.bfloat16, scale=1.0):
    """Losses of one process in the micro-batches of `ranks` ranks, fp32 master weights."""
    torch.set_num_threads(1)
    batches = [
        [
            support.random_batch(optim_worker.rows_of(step)[i : i + micro])
            for i in range(0, optim_worker.ROWS, micro)
        ]
        for step in range(steps)
    ]

    def rule(master):
        return Reference(master, name)

    return low_trace(optim_worker.make_model(), rule, batches, LR[name], ranks, dtype, scale)


def off(losses, expected):
    """Largest relative difference of two traces."""
    pairs = zip(losses, expected, strict=True)
    return max((abs(a - b) / b for a, b in pairs), default=math.inf)
