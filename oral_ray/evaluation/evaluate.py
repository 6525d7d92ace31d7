"""Stage 4: every arm on every chosen base and task; writes tables that the report is made of.

Reads generators, corpus, bases, tasks; writes control adapters, generated adapters, scores, and to `out`:
scores.parquet, answers.parquet (one row per example), curve.parquet, distances.parquet.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from oral_ray.adapters.distance import relative_distances, unexplained
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
from oral_ray.pipeline.corpus import Corpus, CorpusEntry, plan_targets, seen_ids
from oral_ray.pipeline.run import Run
from oral_ray.pipeline.walk import Trained
from oral_ray.tasks import expand

logger = logging.getLogger(__name__)
CURVE = ["base", "task", "metric", "num_steps", "value"]
DISTANCES = ["base", "task", "arm", "seed", "distance", "nearest_task", "nearest_base", "unexplained"]


def evaluate_arms(trained: Trained, generators: Mapping[int, str]) -> pd.DataFrame:
    """Score all configured arms on the tasks of the corpus and write the tables; returns the scores.

    `generators` are the recipes by their entries of `evaluation.generator_seeds`.
    """
    run, out = trained.run, Path(trained.run.config.out)
    digests = _make(trained, generators, run.config.tasks.ids)
    curve = _curve_requests(run, trained.recipe)
    curve_digests = cells.generate_all(run, curve)
    of_curve = {(r.base, r.task, digest) for r, digest in zip(curve, curve_digests, strict=True)}
    scored = _scored(run, _asked(digests) | of_curve)
    scores = _write(run, digests, scored, out)
    curve_rows = []
    for request, digest in zip(curve, curve_digests, strict=True):
        cell = scored[request.base, request.task]
        curve_rows.append(
            {
                "base": request.base, "task": request.task, "metric": cell.metric.name,
                "num_steps": request.num_steps, "value": cell.figure(digest),
            }
        )  # fmt: skip
    pd.DataFrame(curve_rows, columns=CURVE).to_parquet(out / "curve.parquet")
    distances = list(_distances(trained, digests))
    pd.DataFrame(distances, columns=DISTANCES).to_parquet(out / "distances.parquet")
    return scores


def evaluate_confusion(run: Run, recipe: str) -> pd.DataFrame:
    """The adapter that a generator makes for each task of the corpus, on every task, on the last of the evaluated bases.

    One row per (asked, task): how well the adapter that was asked for `asked` does `task`; to `out`/confusion.parquet.
    """
    base_id, task_ids, out = chosen_bases(run.config)[-1], run.config.tasks.ids, Path(run.config.out)
    requests = [generation_request(run, base_id, task_id, recipe) for task_id in task_ids]
    made = dict(zip(task_ids, cells.generate_all(run, requests), strict=True))
    scored = _scored(run, {(base_id, task, digest) for task in made for digest in made.values()})
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
    out.mkdir(parents=True, exist_ok=True)
    table.to_parquet(out / "confusion.parquet")
    return table


def evaluate_unseen(trained: Trained, generators: Mapping[int, str]) -> pd.DataFrame:
    """Score all configured arms on the tasks that no training saw (`tasks.unseen`); scores and answers to `out`/unseen."""
    digests = _make(trained, generators, unseen_tasks(trained.run.config))
    return _write(trained.run, digests, _scored(trained.run, _asked(digests)), Path(trained.run.config.out) / "unseen")


def unseen_tasks(config: Config) -> list[str]:
    """The tasks that no training sees; EvaluationError where none are configured."""
    task_ids = expand(config.tasks.unseen)
    if not task_ids:
        raise EvaluationError("tasks.unseen is empty; name tasks, such as kind/bird, to leave out of every training")
    return task_ids


def _make(trained: Trained, generators: Mapping[int, str], task_ids: Sequence[str]) -> Digests:
    """The adapters of every arm on these tasks, trained and generated where they are missing."""
    digests: Digests = {}
    scaled: dict[tuple[str, float], str] = {}
    for arms, base_ids in _parts(trained.run.config):
        digests |= make_arms(
            EvaluationContext(
                run=trained.run,
                arms=arms,
                task_ids=tuple(task_ids),
                base_ids=tuple(base_ids),
                manifest=trained.manifest,
                generators=generators,
                scaled=scaled,
            )
        )
    check_bases(digests, trained.run)
    return digests


def _parts(config: Config) -> list[tuple[tuple[str, ...], list[str]]]:
    """Arms, and the versions that have just these (`evaluation.arms_on`)."""
    settings = config.evaluation
    arms_of = {base_id: settings.arms_on.get(base_id, settings.arms) for base_id in chosen_bases(config)}
    return [
        (arms, [base_id for base_id in arms_of if arms_of[base_id] == arms]) for arms in dict.fromkeys(arms_of.values())
    ]


def _asked(digests: Digests) -> set[tuple[str, str, str]]:
    return {(base_id, arm_of(arm).reads(task_id), digest) for (base_id, task_id, arm, _), digest in digests.items()}


def _scored(run: Run, asked: set[tuple[str, str, str]]) -> dict[tuple[str, str], CellValues]:
    """The values of (base, task, digest) by base and task."""
    config = run.config
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
    return cells.score_all(run, wanted)


def _write(run: Run, digests: Digests, scored: dict[tuple[str, str], CellValues], out: Path) -> pd.DataFrame:
    """scores.parquet, one row per (base, task, arm, seed), and answers.parquet; returns the scores.

    An arm that a metric has no values for (`majority`, where there are no right answers to count) has no row.
    """
    seen = set(seen_ids(run.config))
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
    for arms, _ in _parts(config):
        chosen_arms(arms)


def chosen_bases(config: Config) -> list[str]:
    """The ids of the versions to score on; EvaluationError for one that is not configured."""
    known = [version.id for version in config.bases.versions]
    for setting in ("bases", "arms_on"):
        if unknown := [base_id for base_id in getattr(config.evaluation, setting) if base_id not in known]:
            raise EvaluationError(f"evaluation.{setting} names {unknown}, configured are {', '.join(known) or 'none'}")
    return list(config.evaluation.bases or known)


def _curve_requests(run: Run, recipe: str) -> list[Request]:
    """The sampling-steps curve on the last evaluated base."""
    settings = run.config.evaluation
    last = chosen_bases(run.config)[-1]
    return [
        generation_request(run, last, task_id, recipe).model_copy(update={"num_steps": num_steps})
        for task_id in run.config.tasks.ids[: settings.step_curve_tasks]
        for num_steps in settings.step_curve
    ]


def generation_request(run: Run, base_id: str, task_id: str, recipe: str) -> Request:
    """The first sample of the `generated` arm."""
    return Request(
        arm=GENERATED,
        base=base_id,
        task=task_id,
        prompt=run.task(task_id).prompt,
        seed=run.config.evaluation.seeds[0],
        recipe=recipe,
        num_steps=run.config.sampling.num_steps,
    )


def _distances(trained: Trained, digests: Digests) -> Iterable[dict[str, Any]]:
    """Distance of each generated adapter, and of each `trained` one, to the nearest corpus adapter that is not itself.

    `unexplained` is the share of its norm that no linear mix of those adapters makes.
    """
    run, lora = trained.run, trained.run.config.lora
    for layout in (layout for layout in trained.manifest.layouts.values() if layout.lora == lora):
        known = [
            (entry.run, entry.digests[-1])
            for entry in _targets(run, trained.corpus)
            if (run.bases[entry.run.bases[0]].spec.digest, entry.run.lora) == (layout.architecture, lora)
        ]
        asked = [
            (key, digest)
            for key, digest in digests.items()
            if arm_of(key[2]).measures_distance and run.bases[key[0]].spec.digest == layout.architecture
        ]
        if not asked or not known:
            continue
        read = dict.fromkeys(digest for _, digest in (*known, *asked))
        factors = {digest: run.adapters.get(digest).factors(layout) for digest in read}
        made, of_corpus = ([factors[digest] for _, digest in chosen] for chosen in (asked, known))
        others_GK = np.array([[target != digest for _, target in known] for _, digest in asked])
        distance_GK = np.where(others_GK, relative_distances(made, of_corpus), np.inf)
        rest_G = unexplained(made, of_corpus, others_GK)
        for row, rest, ((base_id, task_id, arm, seed), _) in zip(distance_GK, rest_G, asked, strict=True):
            nearest, _ = known[int(row.argmin())]
            yield {
                "base": base_id, "task": task_id, "arm": arm, "seed": seed, "distance": float(row.min()),
                "nearest_task": nearest.task, "nearest_base": nearest.bases[0],
                "unexplained": float(rest),
            }  # fmt: skip


def _targets(run: Run, corpus: Corpus) -> list[CorpusEntry]:
    return [corpus[planned.recipe] for planned in plan_targets(run)]
