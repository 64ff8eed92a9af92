"""Real servers for a corpus folder: HTTP with ranges, ETags and faults, and S3 (moto's).

    python tests/integration/serving.py {http,s3} FOLDER PORT

serves until it is killed; prints `ready` once it answers. S3 has the folder's files as
s3://corpora/FOLDER_NAME/...
"""

from __future__ import annotations

import hashlib
import os
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread

BUCKET = "corpora"
AWS_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "dummy",
    "AWS_SECRET_ACCESS_KEY": "dummy",
    "AWS_DEFAULT_REGION": "us-east-1",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}


@dataclass
class Faults:
    """What the next answers get wrong; each is spent once.

    `drop`: the body stops halfway and the connection is reset. `short`: a complete answer that is
    half of what was asked for. `busy`: 503. `flip`: a bit of the body is another. `whole`: 200 with
    the whole file instead of the range. `hang`: no answer for three seconds.
    """

    ahead: list[str] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    def next(self, method: str, path: str) -> str:
        with self.lock:
            self.requests.append((method, path))
            return self.ahead.pop(0) if self.ahead and method == "GET" else ""


class RangeServer(ThreadingHTTPServer):
    """Serves one folder; `faults` may be changed while it runs."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(
        self,
        folder: Path,
        port: int = 0,
        faults: Faults | None = None,
        cuts: dict[str, int] | None = None,
    ) -> None:
        self.folder = folder
        self.cuts = cuts or {}
        self.handlers: set[_Handler] = set()
        self.faults = faults or Faults()
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def close_all(self) -> None:
        """End connections that clients keep open, as a killed server does."""
        for handler in list(self.handlers):
            with suppress(OSError):
                handler.connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RangeServer

    def setup(self) -> None:
        super().setup()
        self.server.handlers.add(self)

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        fault = self.server.faults.next(self.command, self.path)
        path = self.server.folder / self.path.lstrip("/")
        if fault == "hang":
            time.sleep(3.0)
        if fault == "busy":
            return self._refuse(503)
        if "forbidden" in self.path:
            return self._refuse(403)
        if not path.is_file():
            return self._refuse(404)
        data = path.read_bytes()
        etag = hashlib.md5(data).hexdigest()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        status, total, first = 200, len(data), 0
        if wanted and fault != "whole":
            first, last = int(wanted[1]), int(wanted[2] or total - 1)
            if first >= total:
                return self._refuse(416)
            status, data = 206, data[first : last + 1]
        if fault == "short":
            data = data[: len(data) // 2]
        if fault == "flip":
            data = bytes([data[0] ^ 1]) + data[1:]
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{etag}"')
        self.end_headers()
        cut = self.server.cuts.get(self.path, first + len(data)) - first
        kept = len(data) // 2 if fault == "drop" else max(0, cut)
        if with_body and kept < len(data):
            self.wfile.write(data[:kept])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif with_body:
            self.wfile.write(data)

    def _refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def http_server(
    folder: Path,
    port: int = 0,
    faults: Faults | None = None,
    cuts: dict[str, int] | None = None,
) -> Iterator[RangeServer]:
    """A server in this process; `cuts`: path → byte of the file after which no body goes on."""
    with RangeServer(folder, port, faults, cuts) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerProcess:
    """A server in its own process, that can be killed and started again at the same address."""

    def __init__(self, kind: str, folder: Path, log: Path) -> None:
        self.kind, self.folder, self.log = kind, folder, log
        self.port = free_port()
        self.process: subprocess.Popen[str] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def data_path(self) -> str:
        return f"s3://{BUCKET}/{self.folder.name}" if self.kind == "s3" else self.endpoint

    def start(self, timeout: float = 60) -> ServerProcess:
        command = [sys.executable, __file__, self.kind, str(self.folder), str(self.port)]
        environ = os.environ | AWS_ENVIRONMENT
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command, env=environ, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], timeout)
        assert ready and self.process.stdout.readline() == "ready\n", self.log.read_text()
        return self

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    def __enter__(self) -> ServerProcess:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()


def upload(folder: Path, endpoint: str) -> None:
    """Every file of `folder` becomes an object below its name."""
    import boto3

    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket=BUCKET)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            key = f"{folder.name}/{path.relative_to(folder)}"
            client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())


def _serve(kind: str, folder: Path, port: int) -> None:
    if kind == "http":
        with http_server(folder, port):
            print("ready", flush=True)
            while True:
                time.sleep(3600)
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    upload(folder, f"http://127.0.0.1:{port}")
    print("ready", flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    _serve(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
