"""Shared by evaluation and regeneration: make the candidates of many (base, task) pairs, and score them.

Every adapter that is scored is an artifact of the store, named by digest; every score is kept as a record of its own, so
nothing is computed twice.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from oral_ray.adapters.sampled import SampledAdapter
from oral_ray.bases.catalog import BaseRecord
from oral_ray.bases.loading import load_base
from oral_ray.bases.states import states_folder
from oral_ray.cluster import device_of, run_tasks
from oral_ray.config import Config, Dtype, Section, fingerprint
from oral_ray.errors import EvaluationError
from oral_ray.evaluation.scoring import example_values, majority_values, metric_of
from oral_ray.generation.condition import Condition
from oral_ray.generation.factory import AdapterFactory, effective_sampling, open_factory
from oral_ray.generator.condition import ConditionEncoder
from oral_ray.modalities import Metric, Values, metric_named
from oral_ray.objects import in_parallel, open_objects
from oral_ray.pipeline.own_tasks import task_of
from oral_ray.store.adapters import AdapterStore
from oral_ray.store.records import Records
from oral_ray.tasks import Split

RECIPE_VERSION = 1
SCORES_RECIPE_VERSION = 2


class Unadapted(StrEnum):
    """What is scored without an adapter; the value stands where an adapter has its digest."""

    BASE = "zero-shot"
    """The bare base, calibrated."""
    MAJORITY = "majority"
    """The most frequent answer of the training examples."""


def adapter_digest(scored: str) -> str:
    """The digest of the adapter that was scored, empty where there was none."""
    return "" if scored in set(Unadapted) else scored


class Request(Section):
    """One adapter to generate; `arm` says what for, `recipe` names the generator."""

    arm: str
    base: str
    task: str
    prompt: str
    seed: int
    recipe: str
    num_steps: int


class Cell(Section):
    """What is scored together: the adapters (digests, or what is `Unadapted`) of one task on one base in a dtype."""

    base: str
    dtype: Dtype
    task: str
    digests: tuple[str, ...]
    split: Split
    limit: int


@dataclass(frozen=True, slots=True)
class CellValues:
    """The values of a cell's examples by digest, [N] or [N, D], and the metric that they all have.

    A digest is missing where it has no values (`majority`, where the metric does not count right answers).
    """

    metric: Metric
    values: dict[str, np.ndarray]

    def figure(self, digest: str) -> float:
        """The figure of one adapter, over all examples."""
        return self.metric.figure(self.values[digest])

    def best(self, digests: Iterable[str]) -> str | None:
        """The best of some adapters, of equals the first; None where no figure is a number."""
        return self.metric.best({digest: self.figure(digest) for digest in digests})


def generate_all(config: Config, requests: Sequence[Request], found: dict[str, BaseRecord]) -> list[str]:
    """Generate and store on the cluster what is not made yet; digests in the order of requests."""

    def make(left: list[Request]) -> list[str]:
        call = (generate, (config, left, {request.base: found[request.base] for request in left}))
        [made] = run_tasks([call], config.cluster, determinism=config.determinism, retries=1, label="generate")
        return made

    return _made(config, requests, found, make, AdapterStore(open_objects(config.store)).has)


def generate_here(config: Config, requests: Sequence[Request], found: dict[str, BaseRecord]) -> list[str]:
    """The same in this process, for a worker that goes on with what it made: what is damaged is made again, too."""
    is_there = AdapterStore(open_objects(config.store)).is_whole
    return _made(config, requests, found, lambda left: generate(config, left, found), is_there)


def _made(
    config: Config, requests: Sequence[Request], found: dict[str, BaseRecord],
    make: Callable[[list[Request]], list[str]], is_there: Callable[[str], bool],
) -> list[str]:  # fmt: skip
    """The digests of requests; `make` makes those that have no record, or one whose adapter is not there any more."""
    objects = open_objects(config.store)
    records = Records(objects)
    settings = effective_sampling(config.sampling, config.determinism).model_dump(
        mode="json", exclude={"num_steps", "max_batch_tokens"}
    )
    recipes = [
        fingerprint("generated", RECIPE_VERSION, request, found[request.base].fingerprint, config.lora, settings)
        for request in requests
    ]

    def holds(record: dict[str, Any] | None) -> bool:
        return record is not None and is_there(str(record["digest"]))

    kept = {recipe: records.get("generated", recipe) for recipe in recipes}
    done = dict(zip(kept, in_parallel(objects, holds, kept.values()), strict=True))
    left = {recipe: request for recipe, request in zip(recipes, requests, strict=True) if not done[recipe]}
    for recipe, digest in zip(left, make(list(left.values())) if left else (), strict=True):
        about = left[recipe].model_dump(mode="json") | {"digest": digest}
        kept[recipe] = records.commit("generated", recipe, about, holds)
    return [str((kept[recipe] or {})["digest"]) for recipe in recipes]


def score_all(
    config: Config, wanted: Sequence[Cell], found: dict[str, BaseRecord]
) -> dict[tuple[str, str], CellValues]:
    """Score on the cluster what is not scored yet; the values of every cell by (base, task)."""
    left = [cell for cell in (missing(config, cell, found[cell.base]) for cell in wanted) if cell.digests]
    calls = [(score_cell, (config, cell, found[cell.base], config.evaluation.keep_states)) for cell in left]
    run_tasks(calls, config.cluster, determinism=config.determinism, retries=2, label="scores")
    return {(cell.base, cell.task): read_cell(config, cell, found[cell.base]) for cell in wanted}


def generate(config: Config, requests: Sequence[Request], bases: dict[str, BaseRecord]) -> list[str]:
    """Worker: generate and store every request through AdapterFactory; digests in the order of requests."""
    objects = open_objects(config.store)
    store, encoder = AdapterStore(objects), ConditionEncoder(config.condition)
    device = device_of(config.cluster.gpus_per_task)
    digests = [""] * len(requests)
    for recipe, num_steps in sorted({(request.recipe, request.num_steps) for request in requests}):
        sampling = effective_sampling(config.sampling.model_copy(update={"num_steps": num_steps}), config.determinism)
        factory = open_factory(objects, recipe, sampling, device, encoder)
        for places, adapter in _generated(factory, requests, (recipe, num_steps), bases, config):
            digest = store.put(adapter)
            for i in places:
                digests[i] = digest
    return digests


def _generated(
    factory: AdapterFactory, requests: Sequence[Request], key: tuple[str, int], bases: dict[str, BaseRecord],
    config: Config,
) -> Iterable[tuple[list[int], SampledAdapter]]:  # fmt: skip
    """Every adapter of one generator, with the places of its requests: those that differ only in their use share it."""
    asked: dict[str, dict[tuple[str, int], list[int]]] = {}  # by prompt: so many adapters are sampled at once
    for i, request in enumerate(requests):
        if (request.recipe, request.num_steps) == key:
            asked.setdefault(request.prompt, {}).setdefault((request.base, request.seed), []).append(i)
    for prompt, uses in asked.items():
        conditions = [Condition(prompt, bases[base_id], config.lora, seed) for base_id, seed in uses]
        yield from zip(uses.values(), factory.generate(conditions), strict=True)


def missing(config: Config, cell: Cell, base: BaseRecord) -> Cell:
    """The cell without what has been scored before."""
    records, recipes = Records(open_objects(config.store)), _recipes(config, cell, base)
    left = tuple(digest for digest in cell.digests if records.get("scores", recipes[digest]) is None)
    return cell.model_copy(update={"digests": left})


def score_cell(config: Config, cell: Cell, base: BaseRecord, keep_states: bool = False) -> None:
    """Worker: score every adapter of a cell and commit one record each."""
    keep = states_folder() if keep_states else None
    objects = open_objects(config.store)
    adapters, records = AdapterStore(objects), Records(objects)
    task = task_of(config, cell.task)
    loaded = load_base(base, cell.dtype, device_of(config.cluster.gpus_per_task))
    asked = [digest for digest in cell.digests if digest != Unadapted.MAJORITY]
    artifacts = [None if digest == Unadapted.BASE else adapters.get(digest) for digest in asked]
    found = dict(zip(asked, example_values(loaded, task, artifacts, cell.split, cell.limit, keep), strict=True))
    metric = metric_of(loaded, task)
    if Unadapted.MAJORITY in cell.digests:
        found[Unadapted.MAJORITY] = majority_values(metric, task, cell.split, cell.limit)
    recipes = _recipes(config, cell, base)
    for digest, values in found.items():
        about = cell.model_dump(mode="json", exclude={"digests"}) | {"digest": digest, "metric": metric.name}
        records.commit("scores", recipes[digest], about | {"values": _as_json(values)})


def read_cell(config: Config, cell: Cell, base: BaseRecord) -> CellValues:
    """The values of a cell that is scored; EvaluationError where nothing of it is, or records disagree on the metric."""
    records, recipes = Records(open_objects(config.store)), _recipes(config, cell, base)
    stored = {digest: records.get("scores", recipe) for digest, recipe in recipes.items()}
    found = {digest: record for digest, record in stored.items() if record is not None}
    names = {record["metric"] for record in found.values()}
    if len(names) != 1:
        raise EvaluationError(
            f"the scores of {cell.task} on {cell.base} are by {', '.join(sorted(names)) or 'no metric'}, not by one; "
            "delete their records under records/scores/ and run again"
        )
    values = {digest: np.array(record["values"], dtype=float) for digest, record in found.items() if record["values"]}
    return CellValues(metric_named(names.pop()), values)


def _as_json(values: Values) -> list[Any]:
    """Values for a record; null for one that is no finite number, which JSON lacks, and which is read as NaN."""
    of_examples = np.array(values, dtype=float)
    as_objects = of_examples.astype(object)
    as_objects[~np.isfinite(of_examples)] = None
    return as_objects.tolist()


def _recipes(config: Config, cell: Cell, base: BaseRecord) -> dict[str, str]:
    """What names the record of every score of a cell, by digest."""
    about = (base.fingerprint, cell.dtype, task_of(config, cell.task).fingerprint, cell.split, cell.limit)
    return {digest: fingerprint("score", SCORES_RECIPE_VERSION, *about, digest) for digest in cell.digests}
