"""Which benchmarks there are, and one call that runs one with its environment on record.

report = run_benchmark("generate", ["repetitions=3"], Path("out/bench/generate.json"))
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

BENCHMARKS = {
    "generate": "adapters of known models: time, memory, growth, peers, distance to the machine's limit",
    "heads": "our head, the regression head and RPG's trained alike on real adapters: held-out loss beside time",
    "latent": "Cond P-Diff beside ours at equal budget, by the number of generated parameters",
    "adapt": "training an adapter of SmolLM2 against generating it",
    "growth": "corpora, fleets and clusters worked out from the committed reports, and which part gives out first",
    "ssd": "chunked SSD against the plain recurrence",
    "sample": "sampling together and one by one, more steps, guidance",
    "plan": "store calls and time of a night before any work, at 10, 100 and 1,000 bases",
    "store": "adapters in and out of an S3 store, beside raw boto3",
    "score": "scoring texts in batches of several sizes",
    "train": "torch and DeepSpeed, one worker and two, waits and checkpoints",
    "data": "passes over the shards, batches from memory and streamed",
}


def run_benchmark(name: str, overrides: Sequence[str] = (), file: Path | None = None) -> Report:
    """Run a benchmark by name and write its report as JSON where a file is given; ConfigError lists the names."""
    module = benchmark_module(name)
    options = build_section(module.Options, overrides)
    environment = describe_environment()
    result = module.run(options)
    command = " ".join(["oral-ray bench", name, *overrides])
    report = Report(name=name, command=command, options=options.model_dump(), environment=environment, result=result)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(report.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
    return report


def benchmark_module(name: str) -> Any:
    """The module of a benchmark: its `Options` and `run`."""
    if name not in BENCHMARKS:
        raise ConfigError(f"unknown benchmark {name!r}; there are {', '.join(BENCHMARKS)} and all")
    return importlib.import_module(f"oral_ray.bench.{name.replace('-', '_')}")
