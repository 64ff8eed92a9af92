"""What a machine finds about itself before workers start on it, and what it is asked."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from roberta_dist import __version__
from roberta_dist.errors import RobertaDistError
from roberta_dist.launcher.machine import available_cores, find_devices, free_port, worker_script
from roberta_dist.runtime.versions import installed_version

LIBRARIES = ("torch", "deepspeed")


@dataclass(frozen=True)
class Question:
    """What `launch` wants to know of a machine.

    Attributes:
        token_file: lies in the run folder since a moment ago.
        needed: files that must be there too.
        port: of the rendezvous, which is held from now on; 0 a free one, None on all but the first.
        environment: variables that the workers get; no secrets.
    """

    token_file: str
    needed: list[str]
    port: int | None
    environment: dict[str, str]


@dataclass(frozen=True)
class Survey:
    """A machine's answer.

    Attributes:
        version: of roberta_dist.
        python: the interpreter.
        libraries: versions; None for one that is not installed.
        machine: tells machines apart that have several names.
        clock: seconds since 1970.
        devices: accelerators that workers may use.
        cores: that workers may use.
        token: contents of the token file; None if it cannot be read.
        writable: the run folder is.
        missing: of the needed files.
        port: of the rendezvous, held; None if it was not asked for or is taken.
        server: this machine's address as ssh found it; empty if unknown.
        client: address that ssh came from; empty if unknown.
        numactl: is installed.
        trouble: what could not be found out.
    """

    version: str
    python: str
    libraries: dict[str, str | None]
    machine: str
    clock: float
    devices: list[int]
    cores: int
    token: str | None
    writable: bool
    missing: list[str]
    port: int | None
    server: str
    client: str
    numactl: bool
    trouble: list[str] = field(default_factory=list)


def look_around(
    question: Question, environ: Mapping[str, str]
) -> tuple[Survey, socket.socket | None]:
    """Answer `question` on this machine; the socket holds the rendezvous' port.

    Args:
        question: see there.
        environ: of this process.
    """
    environ = {**environ, **question.environment}
    devices: list[int] = []
    trouble = []
    try:
        devices = find_devices(environ)
        worker_script()
    except RobertaDistError as error:
        trouble.append(error.problem)
    held = None if question.port is None else hold_port(question.port)
    token_file = Path(question.token_file)
    client, server = _connection(environ)
    survey = Survey(
        version=__version__,
        python=sys.executable,
        libraries={name: installed_version(name) for name in LIBRARIES},
        machine=_machine(),
        clock=time.time(),
        devices=devices,
        cores=available_cores(),
        token=_read(token_file),
        writable=os.access(token_file.parent, os.W_OK | os.X_OK),
        missing=[path for path in question.needed if not Path(path).exists()],
        port=held.getsockname()[1] if held else None,
        server=server,
        client=client,
        numactl=shutil.which("numactl") is not None,
        trouble=trouble,
    )
    return survey, held


def hold_port(port: int) -> socket.socket | None:
    """A socket that listens on `port` (0: a free one); None if another has it."""
    listener = socket.socket()
    # what an earlier world left in TIME_WAIT is no obstacle to torch's store either
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("", port or free_port()))
        listener.listen(1024)
        return listener
    except OSError:
        listener.close()
        return None


def reach(address: str, port: int, timeout_s: float) -> str | None:
    """Connect to the rendezvous; what prevented it, or None."""
    try:
        socket.create_connection((address, port), timeout_s).close()
        return None
    except OSError as error:
        return str(error) or type(error).__name__


def _connection(environ: Mapping[str, str]) -> tuple[str, str]:
    """Addresses of the ssh connection's client and server; empty where there is none."""
    words = environ.get("SSH_CONNECTION", "").split()
    return (words[0], words[2]) if len(words) == 4 else ("", "")


def _machine() -> str:
    return _read(Path("/proc/sys/kernel/random/boot_id")) or socket.gethostname()


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
