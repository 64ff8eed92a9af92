"""Messages between `launch` and the program it runs on each machine: a JSON object a line."""

from __future__ import annotations

import json
from typing import Any

MARK = b"\x1eroberta-dist "
"""Begins a line of ours; a login shell may write others."""

HEARTBEAT_S = 5.0
SILENCE_S = 60.0
"""Without a word from `launch` for so long a machine ends its workers: the network is gone, and they
must not write into the run folder beside a new world."""


def encode(message: dict[str, Any]) -> bytes:
    """One line."""
    return MARK + json.dumps(message).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any] | None:
    """The message, or None for a line that is not ours."""
    if not line.startswith(MARK):
        return None
    try:
        message = json.loads(line[len(MARK) :])
    except ValueError:
        return None
    return message if isinstance(message, dict) else None
