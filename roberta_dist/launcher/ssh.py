"""Command lines that reach other machines: pure functions. Nothing passes a shell unquoted."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence

KEEPALIVE_S = 10
KEEPALIVES_MISSED = 3
"""A machine that is gone is noticed after KEEPALIVE_S * KEEPALIVES_MISSED seconds."""


def ssh_command(
    host: str, options: Sequence[str], connect_timeout_s: float, remote: Sequence[str]
) -> list[str]:
    """ssh that asks nobody anything and runs `remote` on `host`.

    Of an option given twice ssh takes the first: what must hold stands before the user's, what may be
    another stands behind them.
    """
    return [
        "ssh",
        "-T",
        "-x",
        "-o", "BatchMode=yes",
        "-o", f"ConnectTimeout={math.ceil(connect_timeout_s)}",
        "-o", "ClearAllForwardings=yes",
        *options,
        "-o", f"ServerAliveInterval={KEEPALIVE_S}",
        "-o", f"ServerAliveCountMax={KEEPALIVES_MISSED}",
        "--",
        host,
        "exec " + shlex.join(remote),
    ]  # fmt: skip


def node_program(python: str, python_path: str | None) -> list[str]:
    """The program of ours that runs on each machine.

    Args:
        python: interpreter there.
        python_path: PYTHONPATH for it; None leaves the machine's.
    """
    prefix = ["env", f"PYTHONPATH={python_path}"] if python_path else []
    return [*prefix, python, "-u", "-m", "roberta_dist.launcher.node"]


FORWARDED = ("NCCL_", "GLOO_", "UCX_", "TORCH_", "DS_")


def forwarded(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables that go along to each machine by themselves: they steer libraries and are no secrets."""
    return {name: value for name, value in environ.items() if name.startswith(FORWARDED)}
