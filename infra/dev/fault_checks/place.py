"""What a check has at hand: the code under test, inputs, folders, the command line, and functions by either of two paths.

    @check("1a", "a sequence classifier is not filled up at random", "tests/wild/test_bases_loading.py::test_...")
    def classifier(place: Place) -> None:
        ...                                                       # returns where all is well
        raise FaultError("loaded twice, the logits differ by 0.3")     # what is wrong, in one line

The module is imported with the code under test on sys.path: `oral_ray` is whatever state is looked at.
"""

import contextlib
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

PRESENT = Path(__file__).parents[3]
"""The repository that this script belongs to: the makers of inputs are its tests'."""


class FaultError(Exception):
    """The code under test has the fault; the message says how it shows."""


class Said(NamedTuple):
    """How a command ended: its exit code, and all it printed."""

    code: int
    text: str

    @property
    def is_traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.text

    @property
    def last(self) -> str:
        """The last line that says something."""
        return ([line for line in self.text.splitlines() if line.strip()] or [""])[-1][:300]


@dataclass(frozen=True)
class Place:
    """Where a check runs. `store` is a store that the code under test trained a generator in, `work` an empty folder."""

    code: Path
    inputs: Path
    store: Path
    work: Path
    lock: Path | None

    def cli(self, *argv: object) -> Said:
        """`oral-ray ...` in this process."""
        from oral_ray.cli import main

        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            try:
                code = main([str(item) for item in argv])
            except SystemExit as error:
                code = int(error.code or 0)
            except Exception:
                code = 1
                traceback.print_exc()
        return Said(code, text.getvalue())

    def python(
        self, *argv: object, needs_ray: bool = False, cwd: Path | None = None, more: Mapping[str, str] | None = None
    ) -> Said:  # fmt: skip
        """A Python process of its own on the code under test; one that starts Ray waits for the lock, if there is one."""
        lock = ["flock", str(self.lock)] if needs_ray and self.lock else []
        done = subprocess.run(
            [*lock, sys.executable, *map(str, argv)], cwd=cwd or self.code, env=os.environ | dict(more or {}), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="backslashreplace",
        )  # fmt: skip
        return Said(done.returncode, done.stdout)

    def copy(self, source: Path, name: str = "copy") -> Path:
        """A copy of an input that the check may change."""
        return Path(shutil.copytree(source, self.work / name, symlinks=True))


class Check(NamedTuple):
    """A check: an id that starts with the number of its fault, what holds when it is mended, tests that say the same."""

    id: str
    claim: str
    tests: tuple[str, ...]
    run: Callable[[Place], None]
    timeout_s: float

    @property
    def fault(self) -> int:
        return int("".join(letter for letter in self.id if letter.isdigit()))


CHECKS: dict[str, Check] = {}


def check(
    name: str, claim: str, *tests: str, timeout_s: float = 150
) -> Callable[[Callable[[Place], None]], Callable[[Place], None]]:
    """Register a check; `claim` is what holds where the fault is mended."""

    def register(run: Callable[[Place], None]) -> Callable[[Place], None]:
        assert name not in CHECKS, name
        CHECKS[name] = Check(name, claim, tests, run, timeout_s)
        return run

    return register


def find(name: str, *modules: str) -> Any:
    """The function `name` of the first of these modules that the code under test has."""
    for module in modules:
        with contextlib.suppress(ModuleNotFoundError, AttributeError):
            return getattr(importlib.import_module(module), name)
    raise LookupError(f"the code under test has no {name} in {', '.join(modules)}")


def has(module: str) -> bool:
    """Whether the code under test has a module."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError:
        return False
    return True


def has_runs() -> bool:
    """Whether the code under test resolves a run where a job begins, and hands it on."""
    return has("oral_ray.pipeline.run")


def refusal(call: Callable[[], object]) -> str:
    """The sentence with which a call is refused, empty where it is not; anything but an OralError passes through."""
    from oral_ray.errors import OralError

    try:
        call()
    except OralError as error:
        return " ".join(str(error).split()) or type(error).__name__
    return ""


def must_say(text: str, *words: str, never: tuple[str, ...] = ()) -> None:
    """FaultError unless every word stands in a text, and none of `never`."""
    for word in never:
        if word.lower() in text.lower():
            raise FaultError(f"says {word!r}: {text[-240:]}")
    for word in words:
        if word.lower() not in text.lower():
            raise FaultError(f"does not say {word!r}: {text[-240:] or 'nothing is refused'}")


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def change_json(path: Path, **values: Any) -> None:
    """A JSON file with some of its keys changed."""
    path.write_text(json.dumps(read_json(path) | values))


def hub_cache(folder: Path, base: Path, repository: str) -> None:
    """What a download from the hub leaves behind: files as blobs, and a snapshot of links to them."""
    commit, root = "a" * 40, folder / f"models--{repository.replace('/', '--')}"
    for part in ("blobs", f"snapshots/{commit}", "refs"):
        (root / part).mkdir(parents=True)
    (root / "refs/main").write_text(commit)
    for number, path in enumerate(sorted(base.iterdir())):
        shutil.copy(path, root / "blobs" / str(number))
        (root / "snapshots" / commit / path.name).symlink_to(f"../../blobs/{number}")


def make_inputs(folder: Path, environment: Mapping[str, str]) -> None:
    """Fill the folder of inputs, in a process of its own with the present code and its tests' makers."""
    path = os.pathsep.join(str(PRESENT / part) for part in ("", "tests", "tests/wild", "infra/dev"))
    subprocess.run(
        [sys.executable, "-m", "fault_checks.inputs", str(folder)], check=True, cwd=PRESENT,
        env={**environment, "PYTHONPATH": path}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
