"""Shared by evaluation and regeneration: make the candidates of many (base, task) pairs, and score them.

Every adapter that is scored is an artifact of the store, named by digest; every score is kept as a record of its own, so
nothing is computed twice.
"""

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Any

from oral_ray.adapters.sampled import SampledAdapter
from oral_ray.bases.catalog import BaseRecord
from oral_ray.bases.loading import load_base
from oral_ray.bases.states import states_folder
from oral_ray.cluster import device_of, run_tasks
from oral_ray.config import Config, Dtype, Section, fingerprint
from oral_ray.evaluation.scoring import correct_answers, majority_answers
from oral_ray.generation.condition import Condition
from oral_ray.generation.factory import AdapterFactory, effective_sampling, open_factory
from oral_ray.generator.condition import ConditionEncoder
from oral_ray.objects import in_parallel, open_objects
from oral_ray.pipeline.own_tasks import task_of
from oral_ray.store.adapters import AdapterStore
from oral_ray.store.records import Records
from oral_ray.tasks import Split

RECIPE_VERSION = 1


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
) -> dict[tuple[str, str], dict[str, list[bool]]]:
    """Score on the cluster what is not scored yet; answers by (base, task), then by digest."""
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
    found = dict(zip(asked, correct_answers(loaded, task, artifacts, cell.split, cell.limit, keep), strict=True))
    if Unadapted.MAJORITY in cell.digests:
        found[Unadapted.MAJORITY] = majority_answers(task, cell.split, cell.limit)
    recipes = _recipes(config, cell, base)
    for digest, correct in found.items():
        answers = "".join("1" if right else "0" for right in correct)
        about = cell.model_dump(mode="json", exclude={"digests"}) | {"digest": digest}
        records.commit("scores", recipes[digest], about | {"correct": answers})


def read_cell(config: Config, cell: Cell, base: BaseRecord) -> dict[str, list[bool]]:
    """The scored answers of a cell by digest."""
    records, recipes = Records(open_objects(config.store)), _recipes(config, cell, base)
    found = {digest: records.get("scores", recipe) for digest, recipe in recipes.items()}
    return {digest: [bit == "1" for bit in record["correct"]] for digest, record in found.items() if record}


def _recipes(config: Config, cell: Cell, base: BaseRecord) -> dict[str, str]:
    """What names the record of every score of a cell, by digest."""
    about = (base.fingerprint, cell.dtype, task_of(config, cell.task).fingerprint, cell.split, cell.limit)
    return {digest: fingerprint("score", RECIPE_VERSION, *about, digest) for digest in cell.digests}
