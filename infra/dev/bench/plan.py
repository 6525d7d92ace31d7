"""What a night costs before any work: store calls by what changed since the last run, and planning in time and memory.

Checkpoints of six small families lie in a folder; calls are counted at the object protocol, a listing as one call for
every 1,000 keys, which is how S3 answers. A night is the catalog, the latest releases and the plan.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, PositiveInt
from safetensors.numpy import save

from oral_ray.bases.catalog import BaseRecord, discover
from oral_ray.bases.expected import expected_model
from oral_ray.bases.skeleton import build_skeleton
from oral_ray.bench.harness import BenchOptions, Result, Row, with_peak_memory
from oral_ray.config import LoraSettings, canonical_json
from oral_ray.nightly.plan import PlanItem, plan_releases
from oral_ray.objects import FileObjects, ObjectInfo, Objects
from oral_ray.store.heads import latest_of
from oral_ray.store.releases import Release, ReleasedAdapter, ReleaseStore

KEYS_PER_CALL = 1000
NUM_TASKS = 20
_BERT = {
    "vocab_size": 8, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip
_LLAMA = _BERT | {"num_key_value_heads": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_FAMILIES: dict[str, dict[str, int]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA | {"num_key_value_heads": 2},
    "qwen2": _LLAMA | {"num_key_value_heads": 1},
    "gemma": _LLAMA | {"head_dim": 8},
    "bert": _BERT,
    "gpt2": {"vocab_size": 8, "n_embd": 16, "n_layer": 2, "n_head": 4},
}


class Options(BenchOptions):
    """How many bases there are, in one row each."""

    num_bases: tuple[PositiveInt, ...] = Field((10, 100, 1000), min_length=1)


class CountedObjects:
    """A store that counts its calls by name."""

    def __init__(self, objects: Objects) -> None:
        self.uri, self.cache, self._objects, self.calls = objects.uri, objects.cache, objects, Counter[str]()

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """The listing, one call for every 1,000 keys."""
        found = [*self._objects.list(prefix)]
        self.calls["list"] += max(1, -(-len(found) // KEYS_PER_CALL))
        return iter(found)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self.calls[name] += 1
            return getattr(self._objects, name)(*args)

        return call


def run(options: Options) -> Result:
    """A row a number of bases: calls of the first night, of one without a change, with one, and with one by an event."""
    return Result(rows=tuple(_row(num_bases) for num_bases in options.num_bases))


def _row(num_bases: int) -> Row:
    with tempfile.TemporaryDirectory(prefix="oral-plan-") as name:
        objects = FileObjects(Path(name))
        for number in range(num_bases):
            land(objects, number)
        first, plan, records = _night(objects)
        for record in records:
            _release(objects, record)
        _night(objects)  # reads the releases
        row: Row = {"bases": num_bases, "first": first.total(), "nothing changed": _night(objects)[0].total()}
        land(objects, 0, version=1)
        row["one changed, by event"] = _night(objects, only=[base_id(0)])[0].total()
        land(objects, 0, version=2)
        row["one changed"] = _night(objects)[0].total()
        started = time.perf_counter()
        (_, plan, _), peak_bytes = with_peak_memory(lambda: _night(objects))
        row |= {"pairs": len(plan), "night, s": time.perf_counter() - started, "night, MB": peak_bytes / 1e6}
        kinds = {record.spec.digest for record in records}
        started = time.perf_counter()
        plan_releases(records, _tasks(), kinds, LoraSettings(r=1, target_modules=("o",)), set())
        return row | {"planning alone, s": time.perf_counter() - started}


def _night(
    objects: Objects, only: Collection[str] | None = None
) -> tuple[Counter[str], list[PlanItem], list[BaseRecord]]:
    counted: Any = CountedObjects(objects)
    records, _ = discover(counted, "bases", 0.0, only)
    released = {
        (base, head.release.base_fingerprint, adapter.task)
        for base, head in latest_of(counted, "bench").items()
        for adapter in head.release.adapters
    }
    kinds = {record.spec.digest for record in records}
    plan = plan_releases(records, _tasks(), kinds, LoraSettings(r=1, target_modules=("o",)), released)
    return counted.calls, plan, records


def _release(objects: Objects, record: BaseRecord) -> None:
    adapters = tuple(
        ReleasedAdapter(
            task=task, arm="generated", adapter_id=f"{task}-{'0' * 12}", digest="0" * 64, uri=f"{objects.uri}/x",
            score=0.5, scores={"base": 0.4, "generated": 0.5},
        )
        for task in _tasks()
    )  # fmt: skip
    about = {"base": record.id, "base_fingerprint": record.fingerprint, "generator": "0" * 32, "name": "bench"}
    ReleaseStore(objects).append(Release(**about, adapters=adapters))


def base_id(number: int) -> str:
    """The id of a landed base."""
    return f"base-{number:04d}"


def land(objects: Objects, number: int, version: int = 0) -> None:
    """A checkpoint of one of six families; another version has other weights."""
    model_type = list(_FAMILIES)[number % len(_FAMILIES)]
    config = {"model_type": model_type, **_FAMILIES[model_type]}
    expected = expected_model(config, build_skeleton(config, model_type).kind, (), model_type)
    if expected is None:
        raise AssertionError(f"transformers loads no {model_type}")
    weights = {name: np.full(shape, number + version / 10, np.float32) for name, shape in expected.shapes.items()}
    for name, data in {
        "model.safetensors": save(weights), "tokenizer.json": b"{}", "config.json": canonical_json(config).encode()
    }.items():  # fmt: skip
        objects.put(f"bases/{base_id(number)}/{name}", data)


def _tasks() -> list[str]:
    return [f"task-{number}" for number in range(NUM_TASKS)]
