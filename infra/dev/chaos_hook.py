"""Count the writes that processes make to a folder store, over all of them together, and kill the one that makes a chosen
write. Loaded by infra/dev/chaos.py, and through a sitecustomize in every process of a Ray run."""

import fcntl
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from oral_ray.objects.file import FileObjects

WRITES = ("put", "put_if_absent", "upload", "delete")


def killed_file(trace: Path) -> Path:
    """Where the process that dies says what it was."""
    return trace.with_suffix(".killed")


def install(trace: Path, kill_at: int | str = -1, inside: bool = False) -> None:
    """From now on write a line to `trace` before every write; die at the write with this number (or the first below this
    prefix), or inside it: when the temporary file is written and the object is not there yet."""
    armed = False

    def die() -> None:
        command = Path("/proc/self/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        killed_file(trace).write_text("driver" if "jobs/" in command else "worker")
        os.kill(os.getpid(), signal.SIGKILL)

    def numbered(line: str) -> int:
        with trace.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            number = len(file.readlines())
            file.write(line + "\n")
        return number

    def counted(name: str, write: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: FileObjects, *args: Any) -> Any:
            nonlocal armed
            key = args[1 if name == "upload" else 0]
            if key.startswith("probe/"):  # what a job asks of its store before it starts
                return write(self, *args)
            number = numbered(f"{name} {key}")
            if number == kill_at or (isinstance(kill_at, str) and key.startswith(kill_at)):
                if not inside:
                    die()
                armed = True
            return write(self, *args)

        return call

    def deadly(commit: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **more: die() if armed else commit(*args, **more)

    for name in WRITES:
        setattr(FileObjects, name, counted(name, getattr(FileObjects, name)))
    os.link, Path.replace = deadly(os.link), deadly(Path.replace)  # type: ignore[method-assign]
