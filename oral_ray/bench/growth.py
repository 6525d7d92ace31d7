"""What larger corpora, fleets and clusters cost, from measured rates alone, and which part gives out first.

Reads the reports of `bench generate`, `adapt`, `train` and `data` in `folder` (committed copies), counts the requests of
one stored adapter and of a night's planning here, and multiplies. Nothing else goes in but the numbers of the options. The
kind of adapter is that of `bench adapt`. Hours are those of one machine like the one that was measured; a corpus of N
adapters is trained, read once for its statistics and learnt for `epochs`; a night makes `tasks` adapters for every base.

No GPU was measured. Rows for GPUs say what a run needs of each (adapters, bytes read, bytes of gradients a second) to end
within `hours`; a worker cannot have less than one adapter of a batch, which is where data parallelism ends.

    oral-ray bench growth --json out/bench/growth.json
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import PositiveFloat, PositiveInt

from oral_ray.adapters.artifact import Provenance, build_artifact
from oral_ray.adapters.lora import initial_factors
from oral_ray.bench import plan
from oral_ray.bench.harness import BenchOptions, Exponent, Result, Row, fit_exponent
from oral_ray.bench.layouts import layout_of
from oral_ray.errors import ConfigError
from oral_ray.objects import FileObjects
from oral_ray.store.adapters import AdapterStore

HOUR_S = 3600.0
PLAIN, WAYS = "torch, 1 worker", ("train", "generate")
FEW, MANY = 100, 400  # bases; calls of a night are a constant and a slope, a listing is a call for every 1,000 keys


class Options(BenchOptions):
    """The sizes to work out, and what the committed reports do not say: epochs, tasks a base, hours a run may take."""

    folder: str = "docs/results/bench"
    adapters: tuple[PositiveInt, ...] = (1000, 10_000, 100_000, 1_000_000)
    bases: tuple[PositiveInt, ...] = (10, 100, 1000, 10_000)
    gpus: tuple[PositiveInt, ...] = (8, 64, 512)
    epochs: PositiveInt = 10
    tasks: PositiveInt = 20
    hours: PositiveFloat = 24.0
    batch_size: PositiveInt = 512


def run(options: Options) -> Result:
    """Rows for corpora, for nights, for clusters; exponents of generation over all committed layouts."""
    rates = Rates(Path(options.folder))
    rows = [*_corpora(options, rates), *_nights(options, rates), *_clusters(options, rates)]
    return Result(rows=tuple(rows), exponents=tuple(rates.exponents()))


class Rates:
    """What the committed reports say; ConfigError names the one that is missing."""

    def __init__(self, folder: Path) -> None:
        [adapt, train, data] = [_reports(folder, name)[0] for name in ("adapt", "train", "data")]
        each_s = {
            way: [float(row["each_s"]) for row in adapt["result"]["rows"] if row["what"].startswith(way)]
            for way in WAYS
        }
        self.parameters = int(adapt["result"]["rows"][0]["parameters"])
        self.train_s, self.generate_s = (min(each_s[way]) for way in WAYS)  # each the faster of its two ways
        plain = next(row for row in train["result"]["rows"] if row["what"] == PLAIN)
        self.values_per_s = float(plain["tokens_per_s"]) * train["options"]["shape"]["token_dim"]
        passes = [row for row in data["result"]["rows"] if "Ray Data" in row["what"]]
        self.read_bytes_per_s = 1e6 * max(row["mb_per_s"] for row in passes)
        self.layouts = [
            row for report in _reports(folder, "generate") for row in report["result"]["rows"] if row.get("seconds")
        ]
        self.generator_bytes = 4 * int(self.layouts[0]["generator_parameters"])

    def exponents(self) -> Iterator[Exponent]:
        """Seconds and peak memory over parameters, all layouts of all committed reports together."""
        sizes = [float(row["parameters"]) for row in self.layouts]
        for what, name in (("seconds", "seconds"), ("peak memory", "peak_mb")):
            values = [max(float(row[name]), 1.0 if name == "peak_mb" else 1e-6) for row in self.layouts]
            yield fit_exponent(f"{what} of parameters, all reports", sizes, values)


def _reports(folder: Path, name: str) -> list[dict[str, Any]]:
    found = sorted(folder.glob(f"{name}[-.]*json"))
    if not found:
        raise ConfigError(f"no {name}*.json in {folder}; run `oral-ray bench {name} --json {folder}/{name}.json` first")
    return [json.loads(path.read_text()) for path in found]


def _corpora(options: Options, rates: Rates) -> Iterator[Row]:
    requests = _requests_of_an_adapter()
    for num in options.adapters:
        num_bytes = 4 * rates.parameters * num
        hours = {
            "train_h": num * rates.train_s / HOUR_S,
            "read_h": num_bytes / rates.read_bytes_per_s / HOUR_S,
            "learn_h": options.epochs * num * rates.parameters / rates.values_per_s / HOUR_S,
        }
        yield {
            "what": f"corpus of {num:,} adapters", "gb": num_bytes / 1e9, "requests": num * requests, **hours,
            "gives_out_first": max(hours, key=lambda name: hours[name]),
        }  # fmt: skip


def _nights(options: Options, rates: Rates) -> Iterator[Row]:
    requests = _requests_of_an_adapter()
    few, many = plan.run(plan.Options(num_bases=(FEW, MANY))).rows

    def calls(name: str, num: int) -> int:
        low, high = float(few[name] or 0), float(many[name] or 0)
        return round(low + (num - FEW) * (high - low) / (MANY - FEW))

    for num in options.bases:
        made = num * options.tasks
        yield {
            "what": f"night of {num:,} bases, all new", "adapters": made, "gb": 4e-9 * rates.parameters * made,
            "requests": calls("first", num) + made * requests,
            "requests_nothing_new": calls("nothing changed", num),
            "generate_h": made * rates.generate_s / HOUR_S, "train_h": made * rates.train_s / HOUR_S,
        }  # fmt: skip


def _clusters(options: Options, rates: Rates) -> Iterator[Row]:
    num = max(options.adapters)
    per_s = options.epochs * num / (options.hours * HOUR_S)
    for gpus in options.gpus:
        yield {
            "what": f"{num:,} adapters learnt on {gpus} GPUs in {options.hours:g} h", "gpu_h": gpus * options.hours,
            "adapters_per_gpu_s": per_s / gpus, "batch_per_gpu": options.batch_size / gpus,
            "read_mb_per_gpu_s": 4e-6 * rates.parameters * per_s / gpus,
            "gradient_mb_per_gpu_s": 2e-6 * rates.generator_bytes * per_s / options.batch_size,
            "gives_out_first": "batch_per_gpu" if options.batch_size <= gpus else "-",
        }  # fmt: skip


def _requests_of_an_adapter() -> int:
    """Calls of one adapter that is stored and then read."""
    layout = layout_of("gpt2", "q,v", 4, 1024)
    about = Provenance(origin="generated", base="gpt2", base_fingerprint="0", code_version="bench")
    artifact = build_artifact(initial_factors(layout, 0), layout, about)
    with tempfile.TemporaryDirectory() as name:
        counted: Any = plan.CountedObjects(FileObjects(Path(name)))
        AdapterStore(counted).put(artifact)
        AdapterStore(counted).get(artifact.digest)
        return counted.calls.total()
