"""Stage 4: every arm on every chosen base and task; writes tables that the report is made of.

Reads generators, corpus, bases, tasks; writes control adapters, generated adapters, scores, and to `out`:
scores.parquet, answers.parquet (one row an example), curve.parquet, distances.parquet.
"""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from oral_ray.adapters.artifact import Provenance, build_artifact
from oral_ray.adapters.layout import AdapterLayout
from oral_ray.adapters.tokens import detokenize
from oral_ray.bases.catalog import BaseRecord
from oral_ray.cluster import Call
from oral_ray.config import Arm, Config
from oral_ray.errors import EvaluationError
from oral_ray.evaluation import Score, relative_distances
from oral_ray.generator.condition import ConditionEncoder
from oral_ray.objects import Objects, open_objects
from oral_ray.stages import cells, corpus, shards, train
from oral_ray.stages.cells import MAJORITY, ZERO_SHOT, Cell, Request
from oral_ray.store.adapters import AdapterStore
from oral_ray.store.shards import ShardManifest, read_stats
from oral_ray.tasks import Task, load_task

logger = logging.getLogger(__name__)
_SEEDS = 1000  # of one generator; seed numbers of the next one start there
DISTANCES = ["base", "task", "arm", "seed", "distance", "nearest_task", "nearest_base"]
Digests = dict[tuple[str, str, Arm, int], str]  # (base, task, arm, seed) -> digest


def run(config: Config) -> pd.DataFrame:
    """Score all configured arms and write the tables; returns the scores, one row a (base, task, arm, seed)."""
    if not all(0 <= seed < _SEEDS for seed in config.evaluation.seeds):
        raise EvaluationError(f"evaluation.seeds are {config.evaluation.seeds}; use seeds from 0 to {_SEEDS - 1}")
    base_ids = chosen_bases(config)
    objects = open_objects(config.store.uri)
    manifest = shards.run(config)
    recipe = train.run(config)
    found = corpus.run(config)
    control = train.regression_config(config)
    beside: list[Call] = []
    if "regression" in config.evaluation.arms and not train.is_done(control, manifest.fingerprint):
        beside = [(train.train_in_task, (control, manifest.fingerprint))]
    digests = _trained_arms(config, found, base_ids, beside)
    generators = {seed: train.trained(_seeded(config, seed)) for seed in config.evaluation.generator_seeds}
    regression = train.recipe_of(control, manifest.fingerprint)
    digests |= _made_arms(config, objects, manifest, generators, regression, found, base_ids)
    curve = _curve_requests(config, recipe, base_ids)
    curve_digests = cells.generate_all(config, curve, found)
    wanted = [
        Cell(
            base=base_id,
            dtype=config.bases.dtype,
            task=task_id,
            digests=tuple(
                sorted(
                    {d for (b, t, *_), d in digests.items() if (b, t) == (base_id, task_id)}
                    | {d for r, d in zip(curve, curve_digests, strict=True) if (r.base, r.task) == (base_id, task_id)}
                )
            ),
            split=config.evaluation.split,
            limit=config.evaluation.max_test if config.evaluation.split == "test" else config.evaluation.max_validation,
        )
        for base_id in base_ids
        for task_id in config.tasks.ids
    ]
    answers = cells.score_all(config, objects, wanted, found)
    seen = set(corpus.seen_ids(config))
    table, rows = [], []
    for (base_id, task_id, arm, seed), digest in digests.items():
        correct = answers[base_id, task_id][digest]
        score = Score(
            base=base_id,
            base_seen=base_id in seen,
            task=task_id,
            arm=arm,
            seed=seed,
            metric="accuracy",
            value=float(np.mean(correct)),
            n=len(correct),
            digest=digest if len(digest) == 64 else "",
        )
        table.append(score.model_dump())
        rows += [
            {"base": base_id, "task": task_id, "arm": arm, "seed": seed, "example": i, "correct": right}
            for i, right in enumerate(correct)
        ]
    curve_rows = [
        {"base": r.base, "task": r.task, "num_steps": r.num_steps, "value": float(np.mean(answers[r.base, r.task][d]))}
        for r, d in zip(curve, curve_digests, strict=True)
    ]
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    scores = pd.DataFrame(table)
    scores.to_parquet(out / "scores.parquet")
    pd.DataFrame(rows).to_parquet(out / "answers.parquet")
    pd.DataFrame(curve_rows, columns=["base", "task", "num_steps", "value"]).to_parquet(out / "curve.parquet")
    distances = list(_distances(config, objects, manifest, digests, found))
    pd.DataFrame(distances, columns=DISTANCES).to_parquet(out / "distances.parquet")
    return scores


def chosen_bases(config: Config) -> list[str]:
    """The ids of the versions to score on; EvaluationError for one that is not configured, before hours of work."""
    known = [version.id for version in config.bases.versions]
    if unknown := [base_id for base_id in config.evaluation.bases if base_id not in known]:
        raise EvaluationError(f"evaluation.bases names {unknown}, configured are {', '.join(known) or 'none'}")
    return list(config.evaluation.bases or known)


def _seeded(config: Config, seed: int) -> Config:
    training = config.training.model_copy(update={"seed": config.training.seed + seed})
    return config.model_copy(update={"training": training})


def _trained_arms(config: Config, found: dict[str, BaseRecord], base_ids: list[str], beside: Sequence[Call]) -> Digests:
    """`trained`, `reuse_*`, `joint` and the arms without an adapter."""
    arms, seen = set(config.evaluation.arms), corpus.seen_ids(config)
    digests: Digests = {}
    for task_id in config.tasks.ids:
        for base_id in base_ids:
            if "base" in arms:
                digests[base_id, task_id, "base", 0] = ZERO_SHOT
            if "majority" in arms:
                digests[base_id, task_id, "majority", 0] = MAJORITY

    def sources(base_id: str) -> dict[Arm, list[str]]:
        newest = corpus.newest_seen(config, base_id)
        return {"trained": [base_id], "reuse_old": seen[:1], "reuse_new": [newest], "joint": seen}

    plan: list[tuple[str, str, Arm, int, corpus.CorpusRun]] = [
        (base_id, task_id, arm, seed, corpus.plan_run(config, task_id, [found[b] for b in source], seed))
        for base_id in base_ids
        for arm, source in sources(base_id).items()
        if arm in arms
        for task_id in config.tasks.ids
        for seed in config.corpus.seeds
    ]
    runs = list({run.recipe: run for *_, run in plan}.values())
    entries = {entry.run.recipe: entry for entry in corpus.train_runs(config, runs, found, beside)}
    for base_id, task_id, arm, seed, run_ in plan:
        digests[base_id, task_id, arm, seed] = entries[run_.recipe].digests[-1]
    return digests


def _made_arms(
    config: Config, objects: Objects, manifest: ShardManifest, generators: dict[int, str], regression: str,
    found: dict[str, BaseRecord], base_ids: list[str],
) -> Digests:  # fmt: skip
    """`generated`, `held_out`, `wrong_prompt`, `regression`, `mean`, `nearest`."""
    arms = set(config.evaluation.arms)
    tasks = {task_id: load_task(task_id) for task_id in config.tasks.ids}
    ids = list(config.tasks.ids)
    requests: list[Request] = []
    keys: list[tuple[str, str, Arm, int]] = []
    samples = [(_SEEDS * g + seed, recipe) for g, recipe in generators.items() for seed in config.evaluation.seeds]
    made: tuple[Arm, ...] = ("generated", "held_out", "wrong_prompt", "regression")
    for arm in made:
        if arm == "wrong_prompt" and len(ids) < 2:
            continue  # there is no other task whose prompt would be wrong
        for task_id in ids if arm in arms else ():
            other = ids[(ids.index(task_id) + 1) % len(ids)] if arm == "wrong_prompt" else task_id
            for base_id in base_ids:
                for seed, recipe in samples if arm != "regression" else [(0, regression)]:
                    keys.append((base_id, task_id, arm, seed))
                    requests.append(
                        Request(
                            arm=arm,
                            base=base_id,
                            task=task_id,
                            prompt=_wording(tasks[other], held_out=arm == "held_out"),
                            seed=seed % _SEEDS,
                            recipe=recipe,
                            num_steps=config.sampling.num_steps,
                        )
                    )
    digests: Digests = dict(zip(keys, cells.generate_all(config, requests, found), strict=True))
    if "mean" in arms:
        digests |= _mean_arm(config, objects, manifest, found, base_ids)
    if "nearest" in arms:
        digests |= _nearest_arm(config, found, base_ids)
    return digests


def _mean_arm(
    config: Config, objects: Objects, manifest: ShardManifest, found: dict[str, BaseRecord], base_ids: list[str]
) -> Digests:
    """The mean adapter of the layout's corpus, whatever the task."""
    store, stats = AdapterStore(objects), read_stats(objects, manifest)
    digests: Digests = {}
    for base_id in base_ids:
        layout = AdapterLayout.of(found[base_id].spec, config.lora, config.tokens.token_dim)
        if layout.digest not in stats.means:
            continue
        provenance = Provenance(origin="mean", base=base_id, base_fingerprint=found[base_id].fingerprint)
        digest = store.put(build_artifact(detokenize(stats.means[layout.digest], layout), layout, provenance))
        for task_id in config.tasks.ids:
            digests[base_id, task_id, "mean", 0] = digest
    return digests


def _nearest_arm(config: Config, found: dict[str, BaseRecord], base_ids: list[str]) -> Digests:
    """The newest seen version's adapter of the task whose training prompt is nearest to a wording never trained on."""
    encoder = ConditionEncoder(config.condition)
    tasks = {task_id: load_task(task_id) for task_id in config.tasks.ids}
    known = encoder.encode_prompts([task.prompt for task in tasks.values()])
    digests: Digests = {}
    for task_id, task in tasks.items():
        asked = encoder.encode_prompts([_wording(task, held_out=True)])
        nearest = list(tasks)[int((known @ asked[0]).argmax())]
        for seed in config.corpus.seeds:
            for base_id in base_ids:
                newest = [found[corpus.newest_seen(config, base_id)]]
                entry = corpus.train_runs(config, [corpus.plan_run(config, nearest, newest, seed)], found)[0]
                digests[base_id, task_id, "nearest", seed] = entry.digests[-1]
    return digests


def _wording(task: Task, held_out: bool) -> str:
    return task.held_out_prompts[0] if held_out and task.held_out_prompts else task.prompt


def _curve_requests(config: Config, recipe: str, base_ids: list[str]) -> list[Request]:
    """The sampling-steps curve on the last evaluated base."""
    return [
        Request(
            arm="generated",
            base=base_ids[-1],
            task=task_id,
            prompt=load_task(task_id).prompt,
            seed=config.evaluation.seeds[0],
            recipe=recipe,
            num_steps=num_steps,
        )
        for task_id in config.tasks.ids[: config.evaluation.step_curve_tasks]
        for num_steps in config.evaluation.step_curve
    ]


def _distances(
    config: Config, objects: Objects, manifest: ShardManifest, digests: Digests, found: dict[str, BaseRecord]
) -> Iterable[dict[str, Any]]:
    """Distance of each generated adapter, and of each `trained` one, to the nearest corpus adapter that is not itself."""
    store = AdapterStore(objects)
    entries = corpus.train_runs(config, corpus.plan_grid(config, found, corpus.seen_ids(config)), found)
    for layout in manifest.layouts.values():
        known = [
            (entry, entry.digests[-1])
            for entry in entries
            if found[entry.run.bases[0]].spec.digest == layout.architecture
        ]
        corpus_factors = [store.get(digest).factors(layout) for _, digest in known]
        asked = [
            (key, digest)
            for key, digest in digests.items()
            if key[2] in ("generated", "held_out", "trained", "regression")
            and found[key[0]].spec.digest == layout.architecture
        ]
        if not asked or not known:
            continue
        distances = relative_distances([store.get(digest).factors(layout) for _, digest in asked], corpus_factors)
        for row, ((base_id, task_id, arm, seed), digest) in zip(distances, asked, strict=True):
            row = np.where([d == digest for _, d in known], np.inf, row)
            nearest = known[int(row.argmin())][0].run
            yield {
                "base": base_id, "task": task_id, "arm": arm, "seed": seed, "distance": float(row.min()),
                "nearest_task": nearest.task, "nearest_base": nearest.bases[0],
            }  # fmt: skip
