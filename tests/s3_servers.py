"""S3 servers that are not as one wishes: a proxy that spoils a fraction of the calls of any server, one that overwrites.

    python tests/s3_servers.py http://127.0.0.1:7480 --rate 0.2 --latency 2     # prints its address, serves until killed

A spoilt call is one of: 500, 503 SlowDown, a reset before the server sees it, a reset in the middle of the answer (the
server has done what was asked), a pause.
"""

import argparse
import contextlib
import http.client
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAULTS = ("500", "503", "reset", "cut", "slow")
_CODES = {"500": "InternalError", "503": "SlowDown"}
_ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>injected</Message></Error>'


@contextlib.contextmanager
def faulty_process(
    backend: str, rate: float = 0.2, latency_s: float = 2.0, seed: int = 0, faults: Sequence[str] = FAULTS
) -> Iterator[str]:
    """The address of a spoiling proxy before a server, in its own process."""
    settings = {"rate": rate, "latency": latency_s, "seed": seed, "faults": ",".join(faults)}
    command = [sys.executable, __file__, backend, *(f"--{name}={value}" for name, value in settings.items())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


class Spoiler:
    """Decides, from a seed, which calls are spoilt and how; counts them."""

    def __init__(self, rate: float, latency_s: float, seed: int, faults: Sequence[str]) -> None:
        self.rate, self.latency_s, self.faults = rate, latency_s, faults
        self.counts = dict.fromkeys(("calls", *faults), 0)
        self._rng, self._lock = random.Random(seed), threading.Lock()

    def next(self) -> str:
        with self._lock:
            fault = self._rng.choice(self.faults) if self._rng.random() < self.rate else ""
            self.counts["calls"] += 1
            if fault:
                self.counts[fault] += 1
            return fault


def build_proxy(backend: str, spoiler: Spoiler) -> ThreadingHTTPServer:
    """A server on a free port that forwards to the backend; `GET /_spoilt` tells the counts."""
    host = urlsplit(backend).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.path == "/_spoilt":
                self.answer(200, repr(spoiler.counts).encode())
                return
            fault = spoiler.next()
            if fault in _CODES:
                self.answer(int(fault), _ERROR.format(_CODES[fault]).encode())
            elif fault == "reset":
                self.reset()
            else:
                if fault == "slow":
                    time.sleep(spoiler.latency_s)
                self.forward(body, cut=fault == "cut")

        def forward(self, body: bytes, cut: bool) -> None:
            server = http.client.HTTPConnection(host, timeout=60)
            server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    server.putheader(name, value)
            server.endheaders(body or None)
            response = server.getresponse()
            content = b"" if self.command == "HEAD" else response.read()
            self.send_response_only(response.status)
            for name, value in response.getheaders():
                if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                    self.send_header(name, value)
            length = response.getheader("Content-Length") if self.command == "HEAD" else len(content)
            self.send_header("Content-Length", str(length or 0))
            server.close()
            if cut and not content:  # what was written is written; the client never hears of it
                self.reset()
                return
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if cut else content)
            if cut:
                self.reset()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_one

        def answer(self, status: int, content: bytes) -> None:
            self.send_response_only(status)
            self.send_header("Content-Length", str(0 if self.command == "HEAD" else len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def reset(self) -> None:
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True

        def handle(self) -> None:
            with contextlib.suppress(OSError, ValueError):  # the connection is gone, on purpose or not
                super().handle()

        def finish(self) -> None:
            with contextlib.suppress(OSError, ValueError):
                super().finish()

        def log_message(self, *args: object) -> None: ...

    class Server(ThreadingHTTPServer):
        request_queue_size = 128
        daemon_threads = True

        def shutdown_request(self, request) -> None:  # type: ignore[override]
            with contextlib.suppress(OSError):
                super().shutdown_request(request)

    return Server(("127.0.0.1", 0), Handler)


def overwriting_server() -> ThreadingHTTPServer:
    """An S3 server that keeps objects and silently ignores If-None-Match, as some do."""
    kept: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            kept[self.path] = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.answer(200, b"")

        def do_GET(self) -> None:
            self.answer(200 if self.path in kept else 404, kept.get(self.path, _ERROR.format("NoSuchKey").encode()))

        def do_DELETE(self) -> None:
            kept.pop(self.path, None)
            self.answer(204, b"")

        def answer(self, status: int, content: bytes) -> None:
            self.send_response_only(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None: ...

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


def spoilt(address: str) -> dict[str, int]:
    """How many calls a proxy has seen, and how many it has spoilt in which way."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=10)
    connection.request("GET", "/_spoilt")
    return {name: int(count) for name, count in re.findall(r"'(\w+)': (\d+)", connection.getresponse().read().decode())}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend")
    parser.add_argument("--rate", type=float, default=0.2)
    parser.add_argument("--latency", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", default=",".join(FAULTS))
    args = parser.parse_args()
    proxy = build_proxy(args.backend, Spoiler(args.rate, args.latency, args.seed, args.faults.split(",")))
    print(f"http://127.0.0.1:{proxy.server_address[1]}", flush=True)
    proxy.serve_forever()
