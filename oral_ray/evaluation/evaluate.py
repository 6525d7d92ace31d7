"""Stage 4: every arm on every chosen base and task; writes tables that the report is made of.

Reads generators, corpus, bases, tasks; writes control adapters, generated adapters, scores, and to `out`:
scores.parquet, answers.parquet (one row per example), curve.parquet, distances.parquet.
"""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from oral_ray.adapters.distance import relative_distances, unexplained
from oral_ray.bases.catalog import BaseRecord
from oral_ray.config import Config
from oral_ray.errors import EvaluationError
from oral_ray.evaluation import cells
from oral_ray.evaluation.answers import answer_rows
from oral_ray.evaluation.arms.generated import GENERATED
from oral_ray.evaluation.arms.registry import arm_of, chosen_arms
from oral_ray.evaluation.cells import Cell, CellValues, Request, adapter_digest
from oral_ray.evaluation.context import Digests, EvaluationContext
from oral_ray.evaluation.make import check_bases, make_arms
from oral_ray.evaluation.scoring import Score
from oral_ray.objects import Objects, open_objects
from oral_ray.pipeline import corpus, shards, train
from oral_ray.pipeline.own_tasks import task_of
from oral_ray.store.adapters import AdapterStore
from oral_ray.store.shards import ShardManifest
from oral_ray.tasks import expand

logger = logging.getLogger(__name__)
CURVE = ["base", "task", "metric", "num_steps", "value"]
DISTANCES = ["base", "task", "arm", "seed", "distance", "nearest_task", "nearest_base", "unexplained"]


def run(config: Config) -> pd.DataFrame:
    """Score all configured arms on the tasks of the corpus and write the tables; returns the scores."""
    check_evaluation(config)
    found, base_ids, objects = corpus.run(config), chosen_bases(config), open_objects(config.store)
    manifest, digests = _made(config, config.tasks.ids)
    curve = _curve_requests(config, train.trained(config), base_ids)
    curve_digests = cells.generate_all(config, curve, found)
    of_curve = {(r.base, r.task, digest) for r, digest in zip(curve, curve_digests, strict=True)}
    scored = _scored(config, _asked(digests) | of_curve, found)
    scores = _write(config, digests, scored, Path(config.out))
    curve_rows = []
    for request, digest in zip(curve, curve_digests, strict=True):
        cell = scored[request.base, request.task]
        curve_rows.append(
            {
                "base": request.base, "task": request.task, "metric": cell.metric.name,
                "num_steps": request.num_steps, "value": cell.figure(digest),
            }
        )  # fmt: skip
    out = Path(config.out)
    pd.DataFrame(curve_rows, columns=CURVE).to_parquet(out / "curve.parquet")
    distances = list(_distances(config, objects, manifest, digests, found))
    pd.DataFrame(distances, columns=DISTANCES).to_parquet(out / "distances.parquet")
    return scores


def run_confusion(config: Config) -> pd.DataFrame:
    """The adapter generated for each task of the corpus, on every task, on the last of the evaluated bases.

    One row a (asked, task): how well the adapter that was asked for `asked` does `task`; to `out`/confusion.parquet.
    """
    base_id, found = chosen_bases(config)[-1], corpus.run(config)
    requests = [generation_request(config, base_id, task_id, train.trained(config)) for task_id in config.tasks.ids]
    made = dict(zip(config.tasks.ids, cells.generate_all(config, requests, found), strict=True))
    scored = _scored(config, {(base_id, task, digest) for task in made for digest in made.values()}, found)
    rows = [
        {
            "base": base_id,
            "asked": asked,
            "task": task,
            "metric": scored[base_id, task].metric.name,
            "digest": digest,
            "value": scored[base_id, task].figure(digest),
            "n": len(scored[base_id, task].values[digest]),
        }
        for asked, digest in made.items()
        for task in made
    ]
    table = pd.DataFrame(rows)
    Path(config.out).mkdir(parents=True, exist_ok=True)
    table.to_parquet(Path(config.out) / "confusion.parquet")
    return table


def run_unseen(config: Config) -> pd.DataFrame:
    """Score all configured arms on the tasks that no training saw (`tasks.unseen`); scores and answers to `out`/unseen."""
    task_ids = expand(config.tasks.unseen)
    if not task_ids:
        raise EvaluationError("tasks.unseen is empty; name tasks, such as kind/bird, to leave out of every training")
    check_evaluation(config)
    _, digests = _made(config, task_ids)
    return _write(config, digests, _scored(config, _asked(digests), corpus.run(config)), Path(config.out) / "unseen")


def _made(config: Config, task_ids: Sequence[str]) -> tuple[ShardManifest, Digests]:
    """The adapters of every arm on these tasks, trained and generated where they are missing."""
    parts = list(_parts(config))
    manifest = shards.run(config)
    train.run(config)
    records = corpus.run(config)
    generators = {seed: train.trained(_seeded(config, seed)) for seed in config.evaluation.generator_seeds}
    digests: Digests = {}
    for part, base_ids in parts:
        evaluation = EvaluationContext(part, tuple(task_ids), tuple(base_ids), records, manifest, generators)
        digests |= make_arms(evaluation)
    check_bases(digests, AdapterStore(open_objects(config.store)), records)
    return manifest, digests


def _parts(config: Config) -> Iterable[tuple[Config, list[str]]]:
    """The versions that have the same arms, and the configuration with these (`evaluation.arms_on`)."""
    settings = config.evaluation
    arms_of = {base_id: settings.arms_on.get(base_id, settings.arms) for base_id in chosen_bases(config)}
    for arms in dict.fromkeys(arms_of.values()):
        part = config.model_copy(update={"evaluation": settings.model_copy(update={"arms": arms})})
        yield part, [base_id for base_id in arms_of if arms_of[base_id] == arms]


def _asked(digests: Digests) -> set[tuple[str, str, str]]:
    return {(base_id, arm_of(arm).reads(task_id), digest) for (base_id, task_id, arm, _), digest in digests.items()}


def _scored(
    config: Config, asked: set[tuple[str, str, str]], found: dict[str, BaseRecord]
) -> dict[tuple[str, str], CellValues]:
    """The values of (base, task, digest) by base and task."""
    of_test = config.evaluation.split == "test"
    wanted = [
        Cell(
            base=base_id,
            dtype=config.bases.dtype,
            task=task_id,
            digests=tuple(sorted(digest for b, t, digest in asked if (b, t) == (base_id, task_id))),
            split=config.evaluation.split,
            limit=config.evaluation.max_test if of_test else config.evaluation.max_validation,
        )
        for base_id, task_id in sorted({(b, t) for b, t, _ in asked})
    ]
    return cells.score_all(config, wanted, found)


def _write(config: Config, digests: Digests, scored: dict[tuple[str, str], CellValues], out: Path) -> pd.DataFrame:
    """scores.parquet, one row per (base, task, arm, seed), and answers.parquet; returns the scores.

    An arm that a metric has no values for (`majority`, where there are no right answers to count) has no row.
    """
    seen = set(corpus.seen_ids(config))
    scores, answers = [], []
    for (base_id, task_id, arm, seed), digest in digests.items():
        cell = scored[base_id, arm_of(arm).reads(task_id)]
        if digest not in cell.values:
            continue
        score = Score(
            base=base_id,
            base_seen=base_id in seen,
            task=task_id,
            arm=arm,
            seed=seed,
            metric=cell.metric.name,
            value=cell.figure(digest),
            n=len(cell.values[digest]),
            digest=adapter_digest(digest),
        )
        scores.append(score)
        answers.append(answer_rows(score, cell.values[digest]))
    if not scores:
        raise EvaluationError("none of evaluation.arms has a value on these tasks and bases; add `base`, which has one")
    out.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame([score.model_dump() for score in scores])
    table.to_parquet(out / "scores.parquet")
    pd.concat(answers, ignore_index=True).to_parquet(out / "answers.parquet")
    return table


def check_evaluation(config: Config) -> None:
    """EvaluationError for a base version or an arm that there is not, before hours of work."""
    for part, _ in _parts(config):
        chosen_arms(part.evaluation.arms)


def chosen_bases(config: Config) -> list[str]:
    """The ids of the versions to score on; EvaluationError for one that is not configured."""
    known = [version.id for version in config.bases.versions]
    for setting in ("bases", "arms_on"):
        if unknown := [base_id for base_id in getattr(config.evaluation, setting) if base_id not in known]:
            raise EvaluationError(f"evaluation.{setting} names {unknown}, configured are {', '.join(known) or 'none'}")
    return list(config.evaluation.bases or known)


def _seeded(config: Config, seed: int) -> Config:
    training = config.training.model_copy(update={"seed": config.training.seed + seed})
    return config.model_copy(update={"training": training})


def _curve_requests(config: Config, recipe: str, base_ids: list[str]) -> list[Request]:
    """The sampling-steps curve on the last evaluated base."""
    return [
        generation_request(config, base_ids[-1], task_id, recipe).model_copy(update={"num_steps": num_steps})
        for task_id in config.tasks.ids[: config.evaluation.step_curve_tasks]
        for num_steps in config.evaluation.step_curve
    ]


def generation_request(config: Config, base_id: str, task_id: str, recipe: str) -> Request:
    """The first sample of the `generated` arm."""
    return Request(
        arm=GENERATED,
        base=base_id,
        task=task_id,
        prompt=task_of(config, task_id).prompt,
        seed=config.evaluation.seeds[0],
        recipe=recipe,
        num_steps=config.sampling.num_steps,
    )


def _distances(
    config: Config, objects: Objects, manifest: ShardManifest, digests: Digests, found: dict[str, BaseRecord]
) -> Iterable[dict[str, Any]]:
    """Distance of each generated adapter, and of each `trained` one, to the nearest corpus adapter that is not itself.

    `unexplained` is the share of its norm that no linear mix of those adapters makes.
    """
    store = AdapterStore(objects)
    entries = corpus.train_runs(config, corpus.plan_targets(config, found), found)
    for layout in (layout for layout in manifest.layouts.values() if layout.lora == config.lora):
        known = [
            (entry, entry.digests[-1])
            for entry in entries
            if (found[entry.run.bases[0]].spec.digest, entry.run.lora) == (layout.architecture, config.lora)
        ]
        corpus_factors = [store.get(digest).factors(layout) for _, digest in known]
        asked = [
            (key, digest)
            for key, digest in digests.items()
            if arm_of(key[2]).measures_distance and found[key[0]].spec.digest == layout.architecture
        ]
        if not asked or not known:
            continue
        made = [store.get(digest).factors(layout) for _, digest in asked]
        others_GK = np.array([[of_corpus != digest for _, of_corpus in known] for _, digest in asked])
        distance_GK = np.where(others_GK, relative_distances(made, corpus_factors), np.inf)
        rest_G = unexplained(made, corpus_factors, others_GK)
        for row, rest, ((base_id, task_id, arm, seed), _) in zip(distance_GK, rest_G, asked, strict=True):
            nearest = known[int(row.argmin())][0].run
            yield {
                "base": base_id, "task": task_id, "arm": arm, "seed": seed, "distance": float(row.min()),
                "nearest_task": nearest.task, "nearest_base": nearest.bases[0],
                "unexplained": float(rest),
            }  # fmt: skip
