"""`python -m roberta_dist.launcher.node`: what `launch` runs on each machine, over ssh.

Told by lines on standard input, answers on standard output: looks around, tries the rendezvous,
starts DeepSpeed's launcher and ends it. Everything comes that way, so that nothing a user gave passes
a shell, and secrets stand in no command line. When the input ends, `launch` is gone, and so are the
workers.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from roberta_dist import __version__
from roberta_dist.launcher.attempts import GRACE_S, POLL_S
from roberta_dist.launcher.command import node_command, worker_environment
from roberta_dist.launcher.machine import (
    available_cores,
    clear_stale_locks,
    extensions_folder,
    find_devices,
    interface_towards,
    worker_script,
)
from roberta_dist.launcher.processes import ProcessGroup
from roberta_dist.launcher.survey import Question, look_around, reach
from roberta_dist.launcher.wire import SILENCE_S, decode, encode
from roberta_dist.runtime.leave import end_process

Inbox = queue.SimpleQueue[dict[str, Any]]
"""Not a Queue: a signal handler puts into it."""
GONE = {"do": "end", "grace_s": 0.0}
"""What is done when `launch` is gone, or a signal says so."""


@dataclass(frozen=True)
class Start:
    """What a machine is told to start; the same for all but `node_rank`.

    Attributes:
        nodes: machine → slots.
        node_rank: which of them this is.
        master_addr: address of the rendezvous.
        master_port: its port.
        run_dir: where the workers start.
        config: the resolved configuration.
        attempt: name of the attempt's folder.
        threads: OMP_NUM_THREADS; 0 shares this machine's cores out.
        bind_cores: see `node_command`.
        interface: network interface, if asked for.
        environment: further variables, secrets among them.
    """

    nodes: dict[str, list[int]]
    node_rank: int
    master_addr: str
    master_port: int | str
    run_dir: str
    config: str
    attempt: str
    threads: int
    bind_cores: bool
    interface: str | None
    environment: dict[str, str]

    def for_node(self, rank: int) -> Start:
        """The same for another machine."""
        return replace(self, node_rank=rank)


def command_of(start: Start, python: str, script: Path) -> list[str]:
    """Command line of DeepSpeed's launcher on the machine."""
    return node_command(
        python,
        start.nodes,
        start.node_rank,
        start.master_addr,
        start.master_port,
        start.bind_cores,
        script,
        Path(start.config),
    )


def _environment(start: Start) -> dict[str, str]:
    environ = os.environ | start.environment
    workers = len(list(start.nodes.values())[start.node_rank])
    extensions = extensions_folder(environ)
    for lock in clear_stale_locks(extensions) if extensions else ():
        _tell(f"removed {lock}: left by a killed build")
    return worker_environment(
        environ,
        sys.executable,
        start.attempt,
        os.getpid(),
        start.threads or max(1, available_cores() // workers),
        extensions,
        without_accelerator=not find_devices(environ) and not Path("/dev/kfd").exists(),
        interface=start.interface,
        gloo_interface=interface_towards(start.master_addr),
    )


def _run(start: Start, inbox: Inbox) -> dict[str, Any]:
    """Start the workers and wait for the end that they, or `launch`, give them."""
    command = command_of(start, sys.executable, worker_script())
    # standard output is for answers
    group = ProcessGroup(command, _environment(start), Path(start.run_dir), sys.stderr.fileno())
    heard = time.monotonic()
    left = 0
    try:
        while not group.wait(POLL_S):
            if time.monotonic() - heard > SILENCE_S:
                inbox.put(GONE)
            with suppress(queue.Empty):
                message = inbox.get_nowait()
                heard = time.monotonic()
                if message["do"] == "stop":
                    _answer({"asked": group.ask_workers_to_stop()})
                elif message["do"] == "end":
                    group.end(message["grace_s"])
    finally:
        left = group.end(GRACE_S)
    return {"exit": group.leader.returncode, "left": left}


def _serve(inbox: Inbox) -> None:
    """Do what comes until the workers have ended or `launch` is gone."""
    held: socket.socket | None = None
    while True:
        message = inbox.get()
        match message["do"]:
            case "look" if message["version"] != __version__:
                _answer({"survey": {"version": __version__}})
            case "look":
                survey, held = look_around(Question(**message["question"]), os.environ)
                _answer({"survey": asdict(survey)})
            case "reach":
                refused = reach(message["address"], message["port"], message["timeout_s"])
                _answer({"refused": refused})
            case "start":
                if held is not None:
                    held.close()
                _answer(_run(Start(**message["start"]), inbox))
                return
            case "end":
                return


def _listen(inbox: Inbox) -> None:
    for line in iter(sys.stdin.buffer.readline, b""):
        message = decode(line)
        if message is not None:
            inbox.put(message)
    inbox.put(GONE)


def _answer(message: dict[str, Any]) -> None:
    with suppress(OSError):  # launch may be gone
        sys.stdout.buffer.write(encode(message))
        sys.stdout.buffer.flush()


def _tell(text: str) -> None:
    with suppress(OSError):
        print(f"{socket.gethostname()}: {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Serve one `launch`."""
    inbox: Inbox = queue.SimpleQueue()

    def end(signum: int, frame: FrameType | None) -> None:
        inbox.put(GONE)

    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, end)
    threading.Thread(target=_listen, args=(inbox,), daemon=True).start()
    _serve(inbox)
    return 0


if __name__ == "__main__":
    # a thread still reads standard input, which the interpreter's own end would trip over
    end_process(main())
