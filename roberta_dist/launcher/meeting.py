"""How the nodes of a job meet before the workers do: over TCP, on the port of the rendezvous to come.

The first node listens. Each other one comes with its answer, waits for its turn, compares clocks and
sends and receives for SPELL_S; a node is alone on the wire meanwhile.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import suppress
from io import BufferedRWPair
from types import TracebackType
from typing import Any

from roberta_dist.units import MIB

SPELL_S = 0.25
"""Seconds of sending in each direction."""
SILENCE_S = 30.0
"""Seconds without a byte after which a connection is given up."""
TURN_S = 600.0
"""Seconds that a node waits for its turn; the step's own time limit ends it before."""
CLOCK_TRIES = 5
CHUNK = bytes(MIB)


class Meeting:
    """The first node's end.

    Args:
        port: to listen on.
    """

    def __init__(self, port: int) -> None:
        self._listener = socket.create_server(("", port), backlog=1024)
        self._listener.settimeout(0.2)
        self._answers: dict[str, dict[str, Any]] = {}
        self._turn = threading.Lock()

    def __enter__(self) -> Meeting:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.close()

    def collect(self, nodes: set[str], deadline: float) -> dict[str, dict[str, Any]]:
        """Answers of `nodes`, of those that came before `deadline` (of the monotonic clock)."""
        while not nodes <= self._answers.keys() and time.monotonic() < deadline:
            with suppress(TimeoutError):
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()
        return {node: answer for node, answer in self._answers.items() if node in nodes}

    def _serve(self, connection: socket.socket) -> None:
        node = ""
        try:
            connection.settimeout(SILENCE_S)
            with connection, connection.makefile("rwb") as stream:
                told = _hear(stream)
                node, answer = str(told["node"]), dict(told["answer"])
                with self._turn:
                    _say(stream, "go")
                    for _ in range(CLOCK_TRIES):
                        _hear(stream)
                        _say(stream, time.time())
                    _say(stream, _receive(stream))
                    _send(stream)
                    answer |= _hear(stream)
                self._answers[node] = answer
        except (OSError, ValueError, KeyError, TypeError) as error:
            if node:
                self._answers[node] = {"error": f"its connection to the first node broke: {error}"}


def visit(first: str, port: int, node: str, answer: dict[str, Any], deadline: float) -> None:
    """Bring the first node `answer` of `node`, with what the way there measures.

    Raises:
        OSError: it was not reached before `deadline`, or the connection broke.
    """
    with _connected(first, port, deadline) as connection, connection.makefile("rwb") as stream:
        connection.settimeout(TURN_S)
        _say(stream, {"node": node, "answer": answer})
        _hear(stream)
        connection.settimeout(SILENCE_S)
        clocks = [_compare_clocks(stream) for _ in range(CLOCK_TRIES)]
        _send(stream)
        there = _hear(stream)
        back = _receive(stream)
        skew = min(clocks)[1]
        _say(stream, {"clock_skew_s": skew, "to_mib_s": there, "from_mib_s": back})


def _connected(host: str, port: int, deadline: float) -> socket.socket:
    while True:
        try:
            return socket.create_connection((host, port), timeout=5)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _compare_clocks(stream: BufferedRWPair) -> tuple[float, float]:
    """(seconds there and back, our clock minus the other's); the quickest tells best."""
    before = time.time()
    _say(stream, "time")
    theirs = float(_hear(stream))
    after = time.time()
    return after - before, (before + after) / 2 - theirs


def _send(stream: BufferedRWPair) -> None:
    """Chunks for SPELL_S, each after its length, and a length of 0."""
    end = time.monotonic() + SPELL_S
    while time.monotonic() < end:
        stream.write(len(CHUNK).to_bytes(8, "big"))
        stream.write(CHUNK)
    stream.write(bytes(8))
    stream.flush()


def _receive(stream: BufferedRWPair) -> float:
    """MiB a second of what `_send` sends, from its first byte to its last."""
    count, began = 0, 0.0
    while length := int.from_bytes(_exactly(stream, 8), "big"):
        if length > len(CHUNK):
            raise ValueError("not a chunk of ours")
        began = began or time.monotonic()
        count += len(_exactly(stream, length))
    return count / MIB / max(time.monotonic() - began, 1e-6)


def _exactly(stream: BufferedRWPair, count: int) -> bytes:
    found = stream.read(count)
    if len(found) < count:
        raise ConnectionError("closed by the other side")
    return found


def _say(stream: BufferedRWPair, value: Any) -> None:
    stream.write(json.dumps(value).encode() + b"\n")
    stream.flush()


def _hear(stream: BufferedRWPair) -> Any:
    line = stream.readline(MIB)
    if not line:
        raise ConnectionError("closed by the other side")
    return json.loads(line)
