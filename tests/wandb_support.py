"""What tests of W&B share: a process tree that is watched for outside contact, and its file read back.

wandb-core is a program of its own, which Python's audit hooks do not see, so its system calls are
traced where strace may be used and its sockets listed elsewhere.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KEY = "0123456789" * 4
WATCHED_RUN = """
import sys
from ipaddress import ip_address
from pathlib import Path

import psutil

report = open(sys.argv[2], "a", buffering=1)

def hook(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        report.write(f"{event} {arguments[0]}\\n")
    elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        report.write(f"{event} {arguments[1]}\\n")

sys.addaudithook(hook)

exec(sys.argv[3])
for process in psutil.Process().children(recursive=True):
    for connection in process.net_connections("inet"):
        if connection.raddr and not ip_address(connection.raddr.ip).is_loopback:
            report.write(f"{process.name()} {connection.raddr}\\n")
"""
"""Arguments: run folder, report, and what to run before the sockets of all processes are listed."""


def can_trace() -> bool:
    strace = shutil.which("strace")
    return (
        bool(strace)
        and subprocess.run([strace, "-qq", "true"], capture_output=True).returncode == 0
    )


def run_watched(run_dir: Path, folder: Path, what: str, traced: bool) -> list[str]:
    """Every address outside this machine that `what` and its children asked for."""
    report, trace = folder / "report", folder / "trace"
    command = [sys.executable, "-c", WATCHED_RUN, str(run_dir), str(report), what]
    if traced:
        calls = "trace=connect,sendto,sendmsg,sendmmsg"
        command = ["strace", "-f", "-qq", "--seccomp-bpf", "-e", calls, "-o", str(trace), *command]
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    done = subprocess.run(
        command, env=env | {"WANDB_API_KEY": KEY}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    seen = report.read_text().splitlines()
    if trace.is_file():
        for line in trace.read_text().splitlines():
            address = re.search(r'inet_addr\("([^"]+)"|AF_INET6.*?"([^"]+)"', line)
            if address and not (address[1] or address[2]).startswith(("127.", "::1")):
                seen.append(line)
    return seen


BLOCK = 32 * 1024
HEADER = struct.Struct("<IHB")
"""Checksum, length, kind of a piece."""
WHOLE, FIRST, LAST = 1, 2, 4


def read_wandb(path: Path) -> list[Any]:
    """The records of a .wandb file: after 7 bytes a LevelDB log, whose records are cut at blocks."""
    from wandb.proto.wandb_internal_pb2 import Record

    return [Record.FromString(content) for content in _pieces(path.read_bytes())]


def _pieces(data: bytes) -> Iterator[bytes]:
    assert data.startswith(b":W&B")
    at, record = 7, b""
    while at < len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER.size:
            at += left  # padding
            continue
        _, length, kind = HEADER.unpack_from(data, at)
        at += HEADER.size
        piece = data[at : at + length]
        record = piece if kind in (WHOLE, FIRST) else record + piece
        at += length
        if kind in (WHOLE, LAST):
            yield record
