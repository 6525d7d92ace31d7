"""Which benchmarks there are, and how one is run with its environment on record.

BENCH.run("generate", ["repetitions=3"], Path("out/bench/generate.json"), print)
"""

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oral_ray.bench.environment import describe_environment
from oral_ray.bench.harness import Report, report_text
from oral_ray.config import build_section
from oral_ray.errors import ConfigError
from oral_ray.objects import FileObjects

REPORT_BYTES = 1 << 17  # more than a report has


@dataclass(frozen=True, slots=True)
class Benchmarks:
    """Benchmarks by name, `about` says of each what it measures; `command` runs one, `load` imports its module.

    `all` runs them one after another, but for those `apart`, which measure nothing by themselves.
    """

    command: str
    about: Mapping[str, str]
    load: Callable[[str], Any]
    apart: tuple[str, ...] = ()

    def module(self, name: str) -> Any:
        """The module of a benchmark: its `Options` and `run`; ConfigError lists the names."""
        if name not in self.about:
            raise ConfigError(f"unknown benchmark {name!r}; there are {', '.join(self.about)} and all")
        return self.load(name)

    def report(self, name: str, overrides: Sequence[str] = ()) -> Report:
        """Run a benchmark under `option=value` overrides."""
        module = self.module(name)
        options = build_section(module.Options, overrides)
        environment = describe_environment()
        result = module.run(options)
        command = " ".join([self.command, name, *overrides])
        return Report(name=name, command=command, options=options.model_dump(), environment=environment, result=result)

    def run(self, name: str, overrides: Sequence[str], file: Path | None, show: Callable[[str], None]) -> None:
        """Run a benchmark, or `all`, show each report and write it to `file`; to a folder where it is all of them."""
        names = [each for each in self.about if each not in self.apart] if name == "all" else [name]
        for each in names:
            target = file / f"{each}.json" if file and name == "all" else file
            if target:
                check_report(target)
            report = self.report(each, overrides)
            show(report_text(report))
            if target:
                write_report(report, target)


def check_report(file: Path) -> None:
    """ConfigError or StoreError when no report can be written to `file`."""
    if file.is_dir() or not file.name:
        raise ConfigError(f"a report cannot be written to {str(file)!r}, a folder; name a file in it")
    folder, name = FileObjects(file.parent), f"{file.name}.tmp"
    folder.put(name, bytes(REPORT_BYTES))
    folder.delete(name)


def write_report(report: Report, file: Path) -> None:
    """Write a report as JSON, whole or not at all; StoreError where the disk refuses."""
    text = json.dumps(report.model_dump(mode="json"), indent=1) + "\n"
    FileObjects(file.parent).put(file.name, text.encode())


BENCH = Benchmarks(
    command="oral-ray bench",
    about={
        "generate": "adapters of known models: time, memory, how both grow with the size",
        "sample": "sampling together and one by one, more steps, guidance",
        "train": "torch and DeepSpeed, one worker and two, waits and checkpoints",
        "store": "adapters in and out of an S3 store, beside raw boto3",
    },
    load=lambda name: importlib.import_module(f"oral_ray.bench.{name}"),
)
"""What a user times on a machine of their own; `infra/dev/bench` has what developers measure."""
