"""Which benchmarks there are, and one call that runs one with its environment on record.

check_report(file := Path("out/bench/generate.json"))  # before an hour of measuring
write_report(run_benchmark("generate", ["repetitions=3"]), file)
"""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oral_ray.bench.environment import describe_environment
from oral_ray.bench.harness import Report
from oral_ray.config import build_section
from oral_ray.errors import ConfigError
from oral_ray.objects import FileObjects

REPORT_BYTES = 1 << 17  # more than a report has
BENCHMARKS = {
    "generate": "adapters of known models: time, memory, growth, peers, distance to the machine's limit",
    "heads": "our head, the regression head and RPG's trained alike on real adapters: held-out loss beside time",
    "latent": "Cond P-Diff beside ours at equal budget, by the number of generated parameters",
    "adapt": "training an adapter of SmolLM2 against generating it",
    "growth": "corpora, fleets and clusters worked out from reports of the others, and which part gives out first",
    "ssd": "chunked SSD against the plain recurrence",
    "sample": "sampling together and one by one, more steps, guidance",
    "plan": "store calls and time of a night before any work, at 10, 100 and 1,000 bases",
    "store": "adapters in and out of an S3 store, beside raw boto3",
    "score": "scoring texts in batches of several sizes",
    "train": "torch and DeepSpeed, one worker and two, waits and checkpoints",
    "data": "passes over the shards, batches from memory and streamed",
}
ALL = tuple(name for name in BENCHMARKS if name != "growth")
"""What `bench all` runs: everything that measures."""


def run_benchmark(name: str, overrides: Sequence[str] = ()) -> Report:
    """Run a benchmark by name; ConfigError lists the names."""
    module = benchmark_module(name)
    options = build_section(module.Options, overrides)
    environment = describe_environment()
    result = module.run(options)
    command = " ".join(["oral-ray bench", name, *overrides])
    return Report(name=name, command=command, options=options.model_dump(), environment=environment, result=result)


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


def benchmark_module(name: str) -> Any:
    """The module of a benchmark: its `Options` and `run`."""
    if name not in BENCHMARKS:
        raise ConfigError(f"unknown benchmark {name!r}; there are {', '.join(BENCHMARKS)} and all")
    return importlib.import_module(f"oral_ray.bench.{name.replace('-', '_')}")
