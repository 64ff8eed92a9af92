"""`python -m roberta_dist.launcher.preflight`: is every node fit? One process a node, started by srun.

Each node looks at itself, then adds up a tensor with each of two neighbours, as training will, and last
comes its way to the first node: TCP in both directions and the clock. The first node collects the answers
and writes one line a node, `NODE fit FIGURES` or `NODE unfit REASON`. This process needs no torch, so
that a node on which torch does not start can say so; the all-reduces have processes of their own.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from roberta_dist.config.load import load_yaml
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.config.slurm import FitConfig
from roberta_dist.errors import ConfigError
from roberta_dist.launcher.machine import find_devices, query_gpus
from roberta_dist.launcher.meeting import SPELL_S, Meeting, visit
from roberta_dist.launcher.pairs import blame, measure_pairs, rounds_of
from roberta_dist.runtime.files import atomic_write
from roberta_dist.units import GIB, MIB


def look(run_dir: Path, gpus: int) -> dict[str, float]:
    """What this node has: GPUs, the fullest one's used fraction, and free memory, disk and shared memory.

    Args:
        run_dir: where the run is written.
        gpus: how many are needed; with 0 none is looked for.
    """
    found: dict[str, float] = {
        "memory_gib": psutil.virtual_memory().available / GIB,
        "disk_gib": shutil.disk_usage(run_dir).free / GIB,
        "shm_mib": shutil.disk_usage("/dev/shm").free / MIB,
    }
    if gpus:
        used = query_gpus()
        found["gpus"] = len(find_devices(os.environ)) if used is None else len(used)
        found["gpu_memory_used"] = max(used or [0.0])
    return found


def complaints(found: dict[str, float], wanted: FitConfig, gpus: int) -> list[str]:
    """Why a node is not fit: the figure and what is wanted; empty for a fit one."""
    least = (
        ("memory_gib", "GiB of memory free", wanted.memory_gib),
        ("disk_gib", "GiB free where the run folder lies", wanted.disk_gib),
        ("shm_mib", "MiB free in /dev/shm", wanted.shm_mib),
        ("to_mib_s", "MiB/s to the first node", wanted.bandwidth_mib_s),
        ("from_mib_s", "MiB/s from the first node", wanted.bandwidth_mib_s),
        ("gpus", "GPUs", float(gpus)),
    )
    told = [
        f"{found[key]:.4g} {what}, wanted {limit:g}"
        for key, what, limit in least
        if found.get(key, limit) < limit
    ]
    if found.get("gpu_memory_used", 0.0) > wanted.gpu_memory_used:
        told.append(f"others hold {found['gpu_memory_used']:.0%} of a GPU's memory")
    if abs(found.get("clock_skew_s", 0.0)) > wanted.clock_skew_s:
        told.append(f"its clock is {found['clock_skew_s']:+.1f} s off the first node's")
    return told


def verdicts(
    nodes: Sequence[str], answers: dict[str, dict[str, Any]], wanted: FitConfig, gpus: int
) -> list[str]:
    """`NODE fit FIGURES` or `NODE unfit REASON` for each node; the first is the one that collected.

    A first node that none of several others reached is taken to be the one that is cut off.
    """
    lines = []
    alone = len(nodes) > 2 and set(answers) <= {nodes[0]}
    found = {node: dict(answer.get("pairs", {})) for node, answer in answers.items()}
    slow = blame(nodes, found, wanted.all_reduce_mib_s)
    for node in nodes:
        answer = answers.get(node)
        if alone:
            told = ["none of the others reached it"] if node == nodes[0] else []
        elif answer is None:
            told = [f"no answer in {wanted.timeout_s:g} s"]
        elif "error" in answer:
            told = [str(answer["error"])]
        else:
            told = [*complaints(answer, wanted, gpus), *([slow[node]] if node in slow else [])]
        figures = " ".join(f"{k}={v:.4g}" for k, v in _numbers(answer or {}))
        lines.append(f"{node} unfit {'; '.join(told)}" if told else f"{node} fit {figures}")
    return [" ".join(line.split()) for line in lines]


def _numbers(answer: Mapping[str, Any]) -> list[tuple[str, float]]:
    """An answer's figures; the all-reduces are named after the neighbour."""
    pairs = {f"all_reduce_{other}": figure for other, figure in answer.get("pairs", {}).items()}
    return [(k, v) for k, v in {**answer, **pairs}.items() if isinstance(v, int | float)]


def main(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Look at this node; on the first one, collect and write what all have to say.

    Args:
        arguments: CONFIG PORT GPUS WORKERS VERDICTS NODE …, all nodes, the first one first.
        environ: SLURM's variables of a task.
    """
    config_path, port, gpus, workers, target, *nodes = arguments
    node = environ.get("SLURMD_NODENAME", socket.gethostname())
    wanted = FitConfig()
    began = time.monotonic()
    try:
        run = load_yaml(PretrainConfig, Path(config_path))
        wanted = run.cluster.slurm.fit
        answer: dict[str, Any] = look(Path(run.run_dir), int(gpus))
    except (ConfigError, OSError) as error:
        answer = {"error": f"does not see the run folder: {str(error).splitlines()[0]}"}
    if "error" not in answer and wanted.all_reduce_mib_s:
        share = wanted.timeout_s / (len(rounds_of(nodes)) + 1)
        answer["pairs"] = measure_pairs(node, nodes, int(port), int(workers), share)
    print(f"{node}: {answer}", flush=True)
    deadline = began + wanted.timeout_s + 2 * SPELL_S * len(nodes)
    if node != nodes[0]:
        visit(nodes[0], int(port), node, answer, deadline)
        return 0
    with Meeting(int(port)) as meeting:
        answers = meeting.collect(set(nodes[1:]), deadline)
    answers[node] = answer
    lines = verdicts(nodes, answers, wanted, int(gpus))
    atomic_write(Path(target), "".join(f"{line}\n" for line in lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
