"""What the measurements of the service share: a service on a free port of this machine, a load beside it, percentiles."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
BASE = "minilm-l6-t2"
FOLDERS = (ROOT / "out/bench", ROOT / "docs/results/bench")
AS_IN_THE_README = dict(re.findall(r"(RAY_SERVE_\w+)=(\S+)", (ROOT / "README.md").read_text()))
STARTER = """
import json, sys, ray
from ray import serve
from serve.app import build_app
port = int(sys.argv[1])
ray.init(address="local", num_cpus=4, include_dashboard=False, object_store_memory=200_000_000, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": port})
for line in sys.stdin:
    name, overrides = json.loads(line)
    app = build_app(dict(item.split("=", 1) for item in overrides))
    serve.run(app, name=name, route_prefix="/" if name == "default" else f"/{name}")
    print("UP", flush=True)
serve.shutdown()
ray.shutdown()
"""


class Running:
    """A service in a child process, with a Ray of its own; `deploy` (again) with other overrides."""

    def __init__(self, config: str, store: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._common = [f"config={config}", f"store.uri={store.absolute()}", "determinism=false", "serve.refresh_s=1"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
        environment["RAY_worker_niceness"] = "0"  # Ray's default, 15, is for workers that share a machine with its user
        for name, value in AS_IN_THE_README.items():
            environment.setdefault(name, value)
        out = ROOT / "out"
        out.mkdir(exist_ok=True)
        self._log = (out / "serve-measure.log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-c", STARTER, str(self.port)], cwd=ROOT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip

    def deploy(self, *overrides: str, name: str = "default") -> None:
        """Start an application, or one in the place of the one of this name; others than `default` are under /<name>."""
        self.process.stdin.write(json.dumps([name, [*self._common, *overrides]]) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.strip() == "UP":
                return
        raise SystemExit(f"the service did not start; see {self._log.name}")

    def stop(self) -> None:
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(60)
        self.process.kill()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return json.load(answer)

    def pids(self, name: str) -> list[int]:
        """The replica processes of a deployment (of this service alone)."""
        found = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                title = (folder / "cmdline").read_bytes().decode(errors="replace")
                if f"ServeReplica:default:{name}" in title and _descends(int(folder.name), self.process.pid):
                    found.append(int(folder.name))
        return found


def _descends(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False


def begin_load(port: int, clients: int, first_seed: int, fresh: bool = True, **more: Any) -> subprocess.Popen:
    """A load that runs beside; `end_load` gives what it saw."""
    asked = {"port": port, "clients": clients, "first_seed": first_seed, "fresh": fresh, "base": BASE} | more
    process = subprocess.Popen([sys.executable, str(HERE / "load.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdin.write(json.dumps(asked).encode())
    process.stdin.close()
    return process


def end_load(process: subprocess.Popen) -> dict[str, Any]:
    seen = json.loads(process.stdout.read())
    process.wait()
    return seen


def summary(seconds: list[float]) -> dict[str, float]:
    """p50, p95, p99 in seconds."""
    ordered = sorted(seconds)
    return {
        f"p{p}_s": round(ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))], 5) if ordered else 0.0
        for p in (50, 95, 99)
    }


@contextlib.contextmanager
def copy_of(store: Path) -> Iterator[Path]:
    """A copy of a store that a measurement may fill and break."""
    target = ROOT / "out" / f"store-{os.getpid()}"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(store, target)
    try:
        yield target
    finally:
        shutil.rmtree(target, ignore_errors=True)


def write(name: str, value: Any) -> None:
    """out/bench/<name>, and the copy of it that the documentation shows."""
    for folder in FOLDERS:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(value, indent=1) + "\n")


def wait_until(check, timeout_s: float, pause_s: float = 0.1) -> float:
    """Seconds until a check holds; SystemExit when it does not in time."""
    started = time.time()
    while not check():
        if time.time() - started > timeout_s:
            raise SystemExit(f"waited {timeout_s} s in vain for {check}")
        time.sleep(pause_s)
    return time.time() - started
