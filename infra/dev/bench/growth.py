"""What larger corpora, fleets and clusters cost, from measured rates alone, and which part gives out first.

Reads the reports of `generate`, `adapt`, `train` and `data` of one machine in `folder`, counts the requests of one
stored adapter and of a night's planning here, and multiplies. Nothing else goes in but the options. The kind of adapter
is that of `adapt`. Hours are those of one machine like the one that was measured; a corpus of N
adapters is trained, read once for its statistics and learnt for `epochs`; a night makes `tasks` adapters for every base.

Training was not measured on a GPU. Rows for GPUs say what a run needs of each (adapters, bytes read, bytes of gradients a
second) to end within `hours`; a worker cannot have less than one adapter of a batch, which is where data parallelism ends.

    python infra/dev/bench growth folder=docs/results/bench --json out/bench/growth.json
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from dev.bench import plan
from pydantic import Field, PositiveFloat, PositiveInt

from oral_ray.adapters.artifact import Provenance, build_artifact
from oral_ray.adapters.lora import initial_factors
from oral_ray.bench.harness import BenchOptions, Exponent, Result, Row, fit_exponent
from oral_ray.bench.layouts import layout_of
from oral_ray.errors import ConfigError
from oral_ray.objects import FileObjects
from oral_ray.store.adapters import AdapterStore

HOUR_S = 3600.0
_COMMANDS = {
    "generate": "oral-ray bench generate",
    "train": "oral-ray bench train",
    "adapt": "python infra/dev/bench adapt",
    "data": "python infra/dev/bench data",
}
PLAIN = "torch, 1 worker"
T = TypeVar("T")
FEW, MANY = 100, 400  # bases; calls of a night are a constant and a slope, a listing is a call for every 1,000 keys


class Options(BenchOptions):
    """The sizes to work out, and what the reports do not say: epochs, tasks a base, hours a run may take.

    Where `folder` has reports of several machines, `machine` is a word that the names of one machine's reports have.
    """

    folder: str = "out/bench"
    machine: str = ""
    adapters: tuple[PositiveInt, ...] = Field((1000, 10_000, 100_000, 1_000_000), min_length=1)
    bases: tuple[PositiveInt, ...] = (10, 100, 1000, 10_000)
    gpus: tuple[PositiveInt, ...] = (8, 64, 512)
    epochs: PositiveInt = 10
    tasks: PositiveInt = 20
    hours: PositiveFloat = 24.0
    batch_size: PositiveInt = 512


def run(options: Options) -> Result:
    """Rows for corpora, for nights, for clusters; exponents of generation over all layouts that were timed."""
    rates = Rates(Path(options.folder), options.machine)
    rows = [*_corpora(options, rates), *_nights(options, rates), *_clusters(options, rates)]
    return Result(rows=tuple(rows), exponents=tuple(rates.exponents()))


class Rates:
    """What the reports of one machine say; ConfigError names the one that is missing, damaged or one of several."""

    def __init__(self, folder: Path, machine: str = "") -> None:
        def read(name: str, take: Callable[[dict[str, Any]], T]) -> T:
            return _read(folder, name, machine, take)

        self.parameters, self.train_s, self.generate_s = read("adapt", _of_adapt)
        self.values_per_s = read("train", _of_train)
        self.read_bytes_per_s = read("data", _of_data)
        self.layouts = read("generate", _of_generate)
        self.generator_bytes = 4 * int(self.layouts[0]["generator_parameters"])

    def exponents(self) -> Iterator[Exponent]:
        """Seconds and peak memory over parameters."""
        sizes = [row["parameters"] for row in self.layouts]
        yield fit_exponent("seconds of parameters", sizes, [row["seconds"] for row in self.layouts])
        yield fit_exponent("peak memory of parameters", sizes, [max(row["peak_mb"], 1.0) for row in self.layouts])


def _read(folder: Path, name: str, machine: str, take: Callable[[dict[str, Any]], T]) -> T:
    """What `take` finds in the one report of a benchmark."""
    found = sorted(path for path in folder.glob(f"{name}[-.]*json") if machine in path.name)
    if not found:
        of = f" with {machine!r} in its name" if machine else ""
        raise ConfigError(f"no {name}*.json{of} in {folder}; run `{_COMMANDS[name]} --json {folder}/{name}.json` first")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ConfigError(f"{len(found)} reports of {name} in {folder}: {names}; say machine=WORD that one of them has")
    try:
        return take(json.loads(found[0].read_text(encoding="utf-8")))
    except (OSError, AttributeError, LookupError, StopIteration, TypeError, ValueError) as error:
        raise ConfigError(
            f"{found[0]} is no whole report of {name} ({type(error).__name__}: {error}); make it again: "
            f"{_COMMANDS[name]} --json {found[0]}"
        ) from None


def _of_adapt(report: dict[str, Any]) -> tuple[int, float, float]:
    """Parameters of an adapter; seconds to train and to generate one, each in the faster of its two ways."""
    rows = report["result"]["rows"]
    train_s, generate_s = (
        min(_positive(row, "each_s") for row in rows if row["what"].startswith(way)) for way in ("train", "generate")
    )
    return int(_positive(rows[0], "parameters")), train_s, generate_s


def _of_train(report: dict[str, Any]) -> float:
    """Values that plain training of one worker learns a second."""
    plain = next(row for row in report["result"]["rows"] if row["what"] == PLAIN)
    return _positive(plain, "tokens_per_s") * _positive(report["options"]["shape"], "token_dim")


def _of_data(report: dict[str, Any]) -> float:
    """Bytes a second of the best pass with Ray Data, which is how a corpus is read."""
    return 1e6 * max(_positive(row, "mb_per_s") for row in report["result"]["rows"] if "Ray Data" in row["what"])


def _of_generate(report: dict[str, Any]) -> list[dict[str, float]]:
    """Of every timed layout: parameters, seconds, peak memory and the size of the generator."""
    timed = [row for row in report["result"]["rows"] if row.get("seconds")]
    names = ("parameters", "seconds", "generator_parameters")
    found = [{name: _positive(row, name) for name in names} | {"peak_mb": float(row["peak_mb"])} for row in timed]
    if len({row["parameters"] for row in found}) < 2:
        raise ValueError("layouts of at least two sizes are needed")
    return found


def _positive(row: dict[str, Any], name: str) -> float:
    value = float(row[name])
    if not value > 0:
        raise ValueError(f"{name} is {value:g}")
    return value


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
