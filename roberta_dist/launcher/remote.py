"""One machine behind an ssh connection, and the workers of a world on several: the part that acts."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

from roberta_dist.launcher.attempts import LAST_WORD_S
from roberta_dist.launcher.wire import HEARTBEAT_S, decode, encode

CLOSE_S = 5.0
KEPT_WORDS = 4096


class RemoteNode:
    """The program of ours on one machine; it ends when the connection does.

    Args:
        host: its name.
        command: ssh and what it runs there.
        environ: of ssh.
    """

    def __init__(self, host: str, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self.host = host
        # a session of its own: the terminal's Ctrl-C is ours to answer
        self._ssh = subprocess.Popen(
            list(command),
            env=dict(environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._words = b""
        self._quiet = True
        self.exit: dict[str, Any] | None = None
        """What it said of the workers' end."""
        self._readers = [
            threading.Thread(target=reader, daemon=True)
            for reader in (self._read_answers, self._read_words)
        ]
        for thread in self._readers:
            thread.start()

    @property
    def code(self) -> int | None:
        """Exit code of ssh; None while the connection stands."""
        return self._ssh.poll()

    @property
    def words(self) -> str:
        """End of what came over standard error."""
        return self._words.decode(errors="replace")

    def show_words(self) -> None:
        """From now on what the machine writes is shown here."""
        self._quiet = False

    def send(self, **message: Any) -> None:
        """Tell it something; a connection that is gone shows by `code`."""
        with suppress(OSError, ValueError):
            _pipe(self._ssh.stdin).write(encode(message))
            _pipe(self._ssh.stdin).flush()

    def receive(self, key: str, deadline: float) -> dict[str, Any] | None:
        """The next answer with `key`; None if the connection ends, or the clock passes `deadline`.

        `received` in it is the time of day at which it came.
        """
        while True:
            try:
                answer = self._inbox.get(timeout=min(0.1, max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                if self._gone() or time.monotonic() > deadline:
                    return None
                continue
            if key in answer:
                return answer

    def ended(self) -> bool:
        """True if its workers have ended, or nobody can say any more."""
        return self.exit is not None or self._gone()

    def _gone(self) -> bool:
        # what it said just before the end is read by a thread that has not ended either
        return self.code is not None and not self._readers[0].is_alive()

    def close(self) -> None:
        """End the connection, and with it everything on the machine that came from it."""
        with suppress(OSError):
            _pipe(self._ssh.stdin).close()
        try:
            self._ssh.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            self._ssh.kill()
            self._ssh.wait()
        for thread in self._readers:
            thread.join(CLOSE_S)

    def _read_answers(self) -> None:
        for line in iter(_pipe(self._ssh.stdout).readline, b""):
            message = decode(line)
            if message is None:
                self._show(line)
                continue
            message["received"] = time.time()
            if "exit" in message:
                self.exit = message
            else:
                self._inbox.put(message)

    def _read_words(self) -> None:
        descriptor = _pipe(self._ssh.stderr).fileno()
        while words := os.read(descriptor, KEPT_WORDS):
            self._show(words)

    def _show(self, words: bytes) -> None:
        self._words = (self._words + words)[-KEPT_WORDS:]
        if not self._quiet:
            with suppress(OSError, ValueError):  # the terminal may be gone; the run matters more
                sys.stderr.buffer.write(words)
                sys.stderr.buffer.flush()


class RemoteWorkers:
    """The workers of one world, as `attempts.Workers`.

    Args:
        nodes: connected machines whose workers were told to start.
    """

    def __init__(self, nodes: Sequence[RemoteNode]) -> None:
        self._nodes = list(nodes)
        self._told = time.monotonic()
        self._broke: float | None = None

    @property
    def said(self) -> str:
        """How each machine's launcher ended."""
        return "; ".join(f"{node.host}: {_ending(node)}" for node in self._nodes)

    @property
    def clean(self) -> bool:
        """True if each ended with exit code 0."""
        return all(node.exit is not None and node.exit["exit"] == 0 for node in self._nodes)

    def wait(self, timeout: float) -> bool:
        """True if all ended within `timeout` seconds, or one broke LAST_WORD_S ago."""
        now = time.monotonic()
        if now - self._told >= HEARTBEAT_S:
            self._told = now
            self._tell(do="alive")
        deadline = now + timeout
        while True:
            if all(node.ended() for node in self._nodes):
                return True
            if self._broke is None and any(map(_broke, self._nodes)):
                self._broke = time.monotonic()
            if self._broke is not None and time.monotonic() - self._broke > LAST_WORD_S:
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)

    def ask_workers_to_stop(self) -> int:
        """Ask every machine's workers to save and stop; returns how many there were."""
        deadline = time.monotonic() + CLOSE_S
        self._tell(do="stop")
        answers = [n.receive("asked", deadline) for n in self._nodes if not n.ended()]
        return sum(answer["asked"] for answer in answers if answer)

    def end(self, grace_s: float) -> int:
        """End all and the connections too; returns how many had outlived their launchers."""
        self._tell(do="end", grace_s=grace_s)
        deadline = time.monotonic() + grace_s + CLOSE_S
        while not all(node.ended() for node in self._nodes) and time.monotonic() < deadline:
            time.sleep(0.05)
        close_all(self._nodes)
        return sum(node.exit["left"] for node in self._nodes if node.exit)

    def _tell(self, **message: Any) -> None:
        for node in self._nodes:
            node.send(**message)


def close_all(nodes: Sequence[RemoteNode]) -> None:
    """Close connections, all at once."""
    closers = [threading.Thread(target=node.close) for node in nodes]
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join()


def _broke(node: RemoteNode) -> bool:
    return node.ended() and (node.exit is None or node.exit["exit"] != 0)


def _ending(node: RemoteNode) -> str:
    if node.exit is not None:
        return f"DeepSpeed's launcher says {node.exit['exit']}"
    return f"connection lost (ssh says {node.code})"


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None, "all three are pipes"
    return stream
