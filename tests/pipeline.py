"""Run jobs of the tiny configuration as a user does: a process of their own, killed or waited for."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]


def job(name: str, base: Path, store: str, out: Path, *overrides: str, **environment: str) -> subprocess.Popen[str]:
    command = [
        sys.executable, str(ROOT / "jobs" / f"{name}.py"), "--config", str(ROOT / "tests" / "tiny.toml"),
        "--store", store, f"out={out}", f"bases.versions.0.origin.source={base}", *overrides,
    ]  # fmt: skip
    return subprocess.Popen(
        command, env=os.environ | environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finished(process: subprocess.Popen[str]) -> str:
    stdout, stderr = process.communicate(timeout=500)
    assert process.returncode == 0, stderr[-4000:]
    return stdout


def kill_one_training_worker(process: subprocess.Popen[str], store: Path) -> int:
    """Wait for the first checkpoint of the run, then kill -9 one of its two workers."""
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline and process.poll() is None:
        if list(store.glob("training/*/checkpoint*/trainer.json")):
            for child in psutil.Process(process.pid).children(recursive=True):
                if "RayTrainWorker" in " ".join(child.cmdline()):
                    child.send_signal(signal.SIGKILL)
                    return child.pid
        time.sleep(0.05)
    raise AssertionError("training never reached a checkpoint")
