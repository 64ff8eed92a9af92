"""Which node is slow? Neighbours of a ring measure their all-reduce, two nodes at a time.

A world of all nodes runs at the pace of its worst, and does not say which that is. In a ring each node is
in two pairs: one whose pairs are all slow is the cause, one with a good pair is not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

Pair = tuple[str, str]
Figure = float | str | None
"""MiB/s, why there is none, or None where another program has the port: that is no node's fault."""
Figures = dict[str, Figure]
"""By neighbour."""
TAKEN = "EADDRINUSE"


def rounds_of(nodes: Sequence[str]) -> list[list[Pair]]:
    """Pairs of the ring of `nodes`, in rounds in which each node is at most in one.

    Example: a b c d → [[ab, cd], [bc, da]]; a b c → [[ab], [bc], [ca]]; a b → [[ab]].
    """
    count = len(nodes)
    if count < 2:
        return []
    ring = [(nodes[i], nodes[(i + 1) % count]) for i in range(count)]
    if count == 2:
        return [ring[:1]]
    even = count - count % 2
    rounds = [ring[0:even:2], ring[1:even:2]]
    if count % 2:  # the last pair meets the first of both rounds
        rounds.append(ring[-1:])
    return rounds


def blame(nodes: Sequence[str], found: Mapping[str, Figures], limit: float) -> dict[str, str]:
    """Nodes that are slow or mute in every pair, and why.

    Where no pair is good the cause is common to all (a port that is closed, an adapter that nobody has, a
    limit that the network cannot reach), and nobody is blamed; but of two nodes that are slow, the second.

    Args:
        nodes: all of them.
        found: of each node that answered, what it says of its neighbours.
        limit: least MiB/s of a good pair.
    """
    pairs: dict[frozenset[str], list[Figure]] = {}
    for node, neighbours in found.items():
        for other, figure in neighbours.items():
            if other in found:  # one that does not answer says nothing of its neighbours
                pairs.setdefault(frozenset((node, other)), []).append(figure)
    known = {pair: figures for pair, figures in pairs.items() if None not in figures}
    good = {
        node for pair, figures in known.items() for node in pair
        if all(isinstance(figure, float) and figure >= limit for figure in figures)
    }  # fmt: skip
    common = not good and (
        len(known) > 1 or any(isinstance(f, str) for figures in known.values() for f in figures)
    )
    told = {}
    for node in nodes if not common else ():
        own = [
            f"with {other}: {figure if isinstance(figure, str) else f'{figure:.4g} MiB/s'}"
            for other, figure in found.get(node, {}).items()
            if frozenset((node, other)) in known
        ]
        if own and node not in good and (good or node != nodes[0]):
            told[node] = f"all-reduce {'; '.join(own)}; wanted {limit:g} MiB/s"
    return told


def measure_pairs(
    node: str, nodes: Sequence[str], port: int, workers: int, share_s: float
) -> Figures:
    """What `node` finds between itself and each of its neighbours.

    Args:
        node: this one.
        nodes: all nodes, in the same order on each.
        port: the rounds take the ports that follow it.
        workers: processes on each node, one a GPU.
        share_s: seconds of each round; all nodes begin at about the same time.
    """
    found: Figures = {}
    began = time.monotonic()
    for number, pairs in enumerate(rounds_of(nodes)):
        for pair in pairs:
            if node in pair:
                place = pair.index(node)
                left = began + share_s * (number + 1) - time.monotonic()
                figure = _meet(pair[0], place, port + 1 + number, workers, max(left, 1.0))
                found[pair[1 - place]] = figure
    return found


def _meet(first: str, place: int, port: int, workers: int, left_s: float) -> Figure:
    """One pair's figure."""
    command = [sys.executable, "-m", "roberta_dist.engine.all_reduce", f"{0.9 * left_s:.1f}"]
    environ = {
        **os.environ,
        "MASTER_ADDR": first,
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(2 * workers),
        "TORCH_NCCL_BLOCKING_WAIT": "1",  # an error in place of an abort: it is to be told
    }
    ranks = []
    for local in range(workers):
        own = {"RANK": str(place * workers + local), "LOCAL_RANK": str(local)}
        output = subprocess.PIPE if local == 0 else subprocess.DEVNULL
        ranks.append(subprocess.Popen(command, env=environ | own, stdout=output, text=True))
    try:
        said, _ = ranks[0].communicate(timeout=left_s)
    except subprocess.TimeoutExpired:
        return "no answer in time"
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    lines = [line for line in said.splitlines() if line.startswith("{")]
    told = json.loads(lines[-1]) if lines else {"error": f"ended with {ranks[0].returncode}"}
    if TAKEN in told.get("error", ""):
        return None
    return float(told["mib_s"]) if "mib_s" in told else str(told["error"]).splitlines()[0]
