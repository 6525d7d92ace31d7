"""An S3 server of one's own for a measurement or a test: moto in its own process on a free loopback port."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

from oral_ray.errors import StoreError


@contextlib.contextmanager
def moto_process() -> Iterator[str]:
    """The address of a moto server; StoreError where none comes up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _await_port(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _await_port(port: int, process: subprocess.Popen) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if process.poll() is not None:
            raise StoreError(f"moto ended with code {process.returncode}; run pip install 'oral-ray[test]'")
        time.sleep(0.05)
    raise StoreError(f"moto did not listen on port {port} after 30 s; try again on a quieter machine")
