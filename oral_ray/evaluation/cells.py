"""Shared by evaluation and regeneration: make the candidates of many (base, task) pairs, and score them.

Every adapter that is scored is an artifact of the store, named by digest; every score is kept as a record of its own, so
nothing is computed twice.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from oral_ray.bases.catalog import BaseRecord
from oral_ray.bases.loading import load_base
from oral_ray.bases.states import states_folder
from oral_ray.config import Config, Dtype, Record, fingerprint
from oral_ray.errors import EvaluationError
from oral_ray.evaluation.scoring import example_values, majority_values, metric_of
from oral_ray.generation.batch import Sample, generate_samples
from oral_ray.generation.factory import effective_sampling
from oral_ray.modalities import Metric, Values, metric_named
from oral_ray.pipeline.run import Run, open_run
from oral_ray.pipeline.work import Finished, complete
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


class Request(Record):
    """One adapter to generate; `arm` says what for, `recipe` names the generator."""

    arm: str
    base: str
    task: str
    prompt: str
    seed: int
    recipe: str
    num_steps: int


class Cell(Record):
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


def generate_all(run: Run, requests: Sequence[Request]) -> list[str]:
    """Generate and store on the cluster what is not made yet; digests in the order of requests."""

    def make(missing: dict[str, Request]) -> dict[str, Finished]:
        bases = {request.base: run.bases[request.base] for request in missing.values()}
        call = (generate, (run.config, list(missing.values()), bases))
        [digests] = run.on_cluster([call], label="generate", retries=1)
        return _committed(run, missing, digests, run.adapters.has)

    recipes = [_request_recipe(run, request, run.bases[request.base]) for request in requests]
    records = complete(run, "generated", dict(zip(recipes, requests, strict=True)), make, _adapters_of)
    return [records[recipe]["digest"] for recipe in recipes]


def generate_here(run: Run, requests: Sequence[Request], base: BaseRecord) -> list[str]:
    """The same for one base in this process, for a worker that goes on with it: what is damaged is made again, too."""

    def make(missing: dict[str, Request]) -> dict[str, Finished]:
        digests = _generate(run, list(missing.values()), {base.id: base})
        return _committed(run, missing, digests, run.adapters.is_whole)

    recipes = [_request_recipe(run, request, base) for request in requests]
    wanted = dict(zip(recipes, requests, strict=True))
    records = complete(run, "generated", wanted, make, _adapters_of, run.adapters.is_whole)
    return [records[recipe]["digest"] for recipe in recipes]


def _committed(
    run: Run, made: Mapping[str, Request], digests: Sequence[str], is_there: Callable[[str], bool]
) -> dict[str, Finished]:
    """Records of requests that were generated just now."""
    records = {}
    for (recipe, request), digest in zip(made.items(), digests, strict=True):
        about = request.model_dump(mode="json") | {"digest": digest}
        records[recipe] = run.records.commit("generated", recipe, about, lambda kept: is_there(kept["digest"]))
    return records


def _adapters_of(record: Finished) -> list[str]:
    return [str(record["digest"])]


def _request_recipe(run: Run, request: Request, base: BaseRecord) -> str:
    """What names the record of a generated adapter."""
    settings = effective_sampling(run.config.sampling, run.config.determinism)
    drawn = settings.model_dump(mode="json", exclude={"num_steps", "max_batch_tokens"})
    return fingerprint("generated", RECIPE_VERSION, request, base.fingerprint, run.config.lora, drawn)


def generate(config: Config, requests: Sequence[Request], bases: Mapping[str, BaseRecord]) -> list[str]:
    """Worker: generate and store every request through AdapterFactory; digests in the order of requests."""
    return _generate(open_run(config), requests, bases)


def _generate(run: Run, requests: Sequence[Request], bases: Mapping[str, BaseRecord]) -> list[str]:
    samples = [
        Sample(request.recipe, request.num_steps, request.prompt, bases[request.base], request.seed)
        for request in requests
    ]
    digests = [""] * len(requests)
    for places, adapter in generate_samples(samples, run.generator, run.probes, run.config, run.device):
        digest = run.adapters.put(adapter)
        for i in places:
            digests[i] = digest
    return digests


def score_all(run: Run, wanted: Sequence[Cell]) -> dict[tuple[str, str], CellValues]:
    """Score on the cluster what is not scored yet; the values of every cell by (base, task)."""

    def score(missing: Sequence[Cell]) -> list[dict[str, Finished]]:
        keep = run.config.evaluation.keep_states
        calls = [(score_cell, (run.config, cell, run.bases[cell.base], keep)) for cell in missing]
        return run.on_cluster(calls, label="scores", retries=2)

    cells = [(cell, run.bases[cell.base]) for cell in wanted]
    return {(cell.base, cell.task): values for cell, values in zip(wanted, _score(run, cells, score), strict=True)}


def score_here(run: Run, cell: Cell, base: BaseRecord) -> CellValues:
    """The values of a cell, scored in this process where they are not there."""
    [values] = _score(run, [(cell, base)], lambda missing: [_score_cell(run, left, base) for left in missing])
    return values


def _score(
    run: Run, wanted: Sequence[tuple[Cell, BaseRecord]], score: Callable[[Sequence[Cell]], list[dict[str, Finished]]]
) -> list[CellValues]:
    """The values of cells; `score` is given cells of what has no record, and returns the records of each."""
    recipes = [_score_recipes(run, cell, base) for cell, base in wanted]
    places = {recipe: (i, digest) for i, cell in enumerate(recipes) for digest, recipe in cell.items()}

    def make(missing: dict[str, tuple[int, str]]) -> dict[str, Finished]:
        left: dict[int, list[str]] = {}
        for i, digest in missing.values():
            left.setdefault(i, []).append(digest)
        cells = [wanted[i][0].model_copy(update={"digests": tuple(digests)}) for i, digests in left.items()]
        made = {}
        for i, records in zip(left, score(cells), strict=True):
            made |= {recipes[i][digest]: record for digest, record in records.items()}
        return made

    records = complete(run, "scores", places, make)
    return [
        _cell_values(cell, {digest: records[recipe] for digest, recipe in of_cell.items()})
        for (cell, _), of_cell in zip(wanted, recipes, strict=True)
    ]


def score_cell(config: Config, cell: Cell, base: BaseRecord, keep_states: bool = False) -> dict[str, Finished]:
    """Worker: score every adapter of a cell and commit one record each; the records by digest."""
    return _score_cell(open_run(config), cell, base, keep_states)


def _score_cell(run: Run, cell: Cell, base: BaseRecord, keep_states: bool = False) -> dict[str, Finished]:
    task, device = run.task(cell.task), run.device
    loaded = load_base(base, cell.dtype, device)
    asked = [digest for digest in cell.digests if digest != Unadapted.MAJORITY]
    artifacts = [None if digest == Unadapted.BASE else run.adapters.get(digest) for digest in asked]
    keep = states_folder() if keep_states else None
    found = dict(zip(asked, example_values(loaded, task, artifacts, cell.split, cell.limit, keep), strict=True))
    metric = metric_of(loaded, task)
    if Unadapted.MAJORITY in cell.digests:
        found[Unadapted.MAJORITY] = majority_values(metric, task, cell.split, cell.limit)
    recipes, records = _score_recipes(run, cell, base), {}
    for digest, values in found.items():
        about = cell.model_dump(mode="json", exclude={"digests"}) | {"digest": digest, "metric": metric.name}
        records[digest] = run.records.commit("scores", recipes[digest], about | {"values": _as_json(values)})
    return records


def _cell_values(cell: Cell, records: Mapping[str, Finished]) -> CellValues:
    """The values of a cell by its records; EvaluationError where they disagree on the metric."""
    names = {record["metric"] for record in records.values()}
    if len(names) != 1:
        raise EvaluationError(
            f"the scores of {cell.task} on {cell.base} are by {', '.join(sorted(names)) or 'no metric'}, not by one; "
            "delete their records under records/scores/ and run again"
        )
    values = {digest: np.array(record["values"], dtype=float) for digest, record in records.items() if record["values"]}
    return CellValues(metric_named(names.pop()), values)


def _as_json(values: Values) -> list[Any]:
    """Values for a record; null for one that is no finite number, which JSON lacks, and which is read as NaN."""
    of_examples = np.array(values, dtype=float)
    as_objects = of_examples.astype(object)
    as_objects[~np.isfinite(of_examples)] = None
    return as_objects.tolist()


def _score_recipes(run: Run, cell: Cell, base: BaseRecord) -> dict[str, str]:
    """What names the record of every score of a cell, by digest."""
    about = (base.fingerprint, cell.dtype, run.task(cell.task).fingerprint, cell.split, cell.limit)
    return {digest: fingerprint("score", SCORES_RECIPE_VERSION, *about, digest) for digest in cell.digests}
