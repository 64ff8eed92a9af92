"""`python -m roberta_dist.engine.all_reduce`: how fast a small world adds up a tensor; one process a rank.

Started by the look at the nodes of a job (launcher/pairs.py), a world of two nodes at a time, before any
model is built. It needs torch and the nodes' network, and neither DeepSpeed nor a run folder.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist

from roberta_dist.units import MIB

PAYLOADS_MIB = (1, 32)
"""The second has a gradient bucket's order of size; a network that needs long for it gets the first."""
SPELL_S = 0.3
"""About how long is measured."""
MOST_ROUNDS = 20


def bus_bandwidth(payload_mib: float, seconds: float, world_size: int) -> float:
    """MiB a second that the slowest link carries, whatever the world's size.

    An all-reduce sends each byte 2 (n - 1) / n times (NVIDIA's nccl-tests, doc/PERFORMANCE.md).
    """
    return payload_mib / seconds * 2 * (world_size - 1) / world_size


def measure(device: torch.device) -> float:
    """Bus bandwidth of the process group, MiB/s: the median of a few all-reduces."""
    small, large = PAYLOADS_MIB
    probe = torch.ones(small * MIB // 4, device=device)
    _once(probe)  # connects
    seconds = torch.tensor([_once(probe)], device=device)
    dist.all_reduce(seconds, op=dist.ReduceOp.MAX)  # the same decisions on every rank
    each = max(seconds.item(), 1e-6)
    size = large if each * large / small < SPELL_S else small
    rounds = max(1, min(MOST_ROUNDS, int(SPELL_S / (each * size / small))))
    payload = torch.ones(size * MIB // 4, device=device)
    found = sorted(_once(payload) for _ in range(rounds))
    return bus_bandwidth(size, found[rounds // 2], dist.get_world_size())


def _once(payload: torch.Tensor) -> float:
    began = time.monotonic()
    dist.all_reduce(payload, op=dist.ReduceOp.MAX)
    if payload.is_cuda:
        torch.cuda.synchronize(payload.device)
    return time.monotonic() - began


def main() -> int:
    """Meet by MASTER_ADDR and MASTER_PORT; print `{"mib_s": BANDWIDTH}` or `{"error": WHY}`.

    One argument: seconds after which whoever is missing is given up.
    """
    timeout = timedelta(seconds=float(sys.argv[1]))
    device = torch.device("cpu")
    try:
        if os.environ.get("DS_ACCELERATOR") != "cpu" and torch.cuda.is_available():
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        dist.init_process_group("gloo" if device.type == "cpu" else "nccl", timeout=timeout)
        print(json.dumps({"mib_s": measure(device)}), flush=True)
        dist.destroy_process_group()
    except RuntimeError as error:  # which all of torch's are; an abort of NCCL says nothing here
        print(json.dumps({"error": str(error)}), flush=True)
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
