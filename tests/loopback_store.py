"""A real S3-compatible server (moto's) in a process of its own on loopback, behind a proxy that can be told to fail.

The proxy sits between s3fs and the server and acts on whole requests: it passes them on, or answers 503, hangs up, waits, cuts a body
short or changes a byte of it, as often as a `Fault` says.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

from tiny import environment, free_port

START_SECONDS = 60.0
# Headers of answers that do not go through as they came.
MADE_ANEW = ("content-length", "transfer-encoding", "connection", "date", "server", "content-range", "etag", "x-amz-checksum-crc32")


@dataclass
class Fault:
    """What happens to the next `times` requests whose `METHOD /path` the pattern is found in. seconds: of a delay."""

    pattern: str
    kind: Literal["503", "cut", "delay", "truncate", "flip"]
    times: int = 1 << 30
    seconds: float = 0.0


@dataclass
class Proxy:
    """Requests seen (`METHOD /path range`), in order, and the faults still to come."""

    port: int
    server_port: int
    faults: list[Fault] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault_of(self, request: str) -> Fault | None:
        """Note a request; the fault that it meets, used up once."""
        with self.lock:
            self.seen.append(request)
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault
        return None

    @property
    def environment(self) -> dict[str, str]:
        """What makes s3fs use it."""
        return s3_environment(self.port)


def s3_environment(port: int) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "loopback",
        "AWS_SECRET_ACCESS_KEY": "loopback",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            request = f"{self.command} {self.path} {self.headers.get('Range', '')}".strip()
            fault = proxy.fault_of(request)
            kind = fault.kind if fault else None
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length else self._chunks()
            if fault and kind == "delay":
                time.sleep(fault.seconds)
            if kind == "503":
                return self._answer(503, {"Content-Type": "application/xml"}, b"<Error><Code>SlowDown</Code></Error>")
            if kind == "cut":
                self.close_connection = True
                return self.connection.close()
            connection = http.client.HTTPConnection("127.0.0.1", proxy.server_port, timeout=60)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in ("transfer-encoding", "expect")}
            connection.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
            response = connection.getresponse()
            data = response.read()
            connection.close()
            if kind == "truncate":
                data = data[: len(data) // 2]  # and says so: only who knows how much there should be finds out
            if kind == "flip" and data:
                data = bytes([data[0] ^ 1]) + data[1:]
            self._answer(response.status, dict(response.getheaders()), data)

        def _chunks(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return b""
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in MADE_ANEW:
                    self.send_header(name, value)
            length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length)
            self.send_header("ETag", headers.get("ETag", '""'))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on

        def log_message(self, format: str, *arguments: object) -> None:
            pass

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):
                super().handle()

        def finish(self) -> None:
            with contextlib.suppress(OSError, ValueError):
                super().finish()

    return Handler


@contextlib.contextmanager
def s3_server(folder: Path) -> Generator[int]:
    """The port of a server of its own, empty."""
    port = free_port()
    with open(folder / "s3_server.log", "ab") as log:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment())
    try:
        until = time.monotonic() + START_SECONDS
        while True:
            assert server.poll() is None, (folder / "s3_server.log").read_text()[-2000:]
            assert time.monotonic() < until, "the S3 server did not answer"
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            with contextlib.suppress(OSError):
                connection.request("GET", "/moto-api/")
                connection.getresponse().read()
                break
            time.sleep(0.1)
        yield port
    finally:
        server.kill()
        server.wait()


@contextlib.contextmanager
def proxy_to(server_port: int) -> Generator[Proxy]:
    """A proxy in threads of this process."""
    proxy = Proxy(0, server_port)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(proxy))
    server.daemon_threads = True
    proxy.port = int(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def in_environment(values: dict[str, str]) -> Generator[None]:
    """This process's environment with these values."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
