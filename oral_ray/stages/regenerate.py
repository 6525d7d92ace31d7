"""Stage 5: for every complete, unreleased base version: generate, compare with reuse, gate on validation, publish.

Reads generators, corpus and landed bases; writes `<publish_prefix>/<base>/<adapter_id>/` and `releases/<base>/`. Reads
no test data.
"""

import fnmatch
import logging

import numpy as np

from oral_ray.bases.catalog import BaseRecord, SkippedBase, discover
from oral_ray.config import Config, Section
from oral_ray.objects import Objects, open_objects
from oral_ray.release import GateDecision, PlanItem, decide, plan_releases
from oral_ray.stages import cells, corpus, train
from oral_ray.stages.cells import ZERO_SHOT, Cell, Request
from oral_ray.store.adapters import AdapterStore
from oral_ray.store.generators import get_generator
from oral_ray.store.releases import Release, ReleasedAdapter, ReleaseStore
from oral_ray.tasks import load_task

logger = logging.getLogger(__name__)


class Outcome(Section):
    """What came of one (base, task): the gate's decision with the validation score of every candidate."""

    base: str
    task: str
    decision: GateDecision
    scores: dict[str, float]
    digest: str


class RegenerationSummary(Section):
    """What one run found, planned and decided, and what stands published for the chosen bases afterwards."""

    skipped_bases: tuple[SkippedBase, ...]
    plan: tuple[PlanItem, ...]
    outcomes: tuple[Outcome, ...]
    published: tuple[dict[str, str], ...]


def run(config: Config) -> RegenerationSummary:
    """Regenerate everything that is due; a second run finds it released and does nothing."""
    objects = open_objects(config.store.uri)
    recipe = train.run(config)
    generator = get_generator(objects, recipe)
    landed, skipped = discover(objects, config.bases.prefix, config.regenerate.quiet_period_s)
    chosen = [base for base in landed if any(fnmatch.fnmatch(base.id, glob) for glob in config.regenerate.bases)]
    releases = ReleaseStore(objects)
    released = {(base.fingerprint, adapter.task) for base in chosen for adapter in _current(releases, base, recipe)}
    plan = plan_releases(chosen, config.tasks.ids, generator.spec.architectures, config.lora, released)
    found = {base.id: base for base in chosen}
    todo = [item for item in plan if item.action == "generate"]
    candidates = _candidates(config, recipe, found, todo)
    outcomes = _decide(config, objects, found, candidates)
    _publish(config, objects, recipe, found, outcomes)
    return RegenerationSummary(
        skipped_bases=tuple(skipped),
        plan=tuple(plan),
        outcomes=tuple(outcomes),
        published=tuple(row for base in chosen for row in _published(releases, base)),
    )


def _current(releases: ReleaseStore, base: BaseRecord, recipe: str) -> tuple[ReleasedAdapter, ...]:
    latest = releases.latest(base.id)
    fresh = latest is not None and (latest.base_fingerprint, latest.generator) == (base.fingerprint, recipe)
    return latest.adapters if latest is not None and fresh else ()


def _candidates(
    config: Config, recipe: str, found: dict[str, BaseRecord], todo: list[PlanItem]
) -> dict[tuple[str, str], dict[str, str]]:
    """Digests by (base, task), then by candidate name."""
    requests = [
        Request(
            arm="generated",
            base=item.base,
            task=item.task,
            prompt=load_task(item.task).prompt,
            seed=seed,
            recipe=recipe,
            num_steps=config.sampling.num_steps,
        )
        for item in todo
        for seed in range(config.regenerate.num_candidates)
        if "generated" in config.regenerate.candidates
    ]
    digests: dict[tuple[str, str], dict[str, str]] = {(item.base, item.task): {} for item in todo}
    for request, made in zip(requests, cells.generate_all(config, requests, found), strict=True):
        name = "generated" if request.seed == 0 else f"generated-{request.seed}"
        digests[request.base, request.task][name] = made
    known = corpus.run(config)
    for item in todo:
        same = [b for b in corpus.seen_ids(config) if known[b].spec.digest == found[item.base].spec.digest]
        newest = [b for b in (corpus.newest_seen(config, item.base),) if b in same] or same[-1:]
        for name, base_id in (("reuse_new", newest), ("reuse_old", same[:1])):
            if name in config.regenerate.candidates and base_id:
                run_ = corpus.plan_run(config, item.task, [known[base_id[0]]], config.corpus.seeds[0])
                digests[item.base, item.task][name] = corpus.train_runs(config, [run_], known)[0].digests[-1]
    return digests


def _decide(
    config: Config, objects: Objects, found: dict[str, BaseRecord], candidates: dict[tuple[str, str], dict[str, str]]
) -> list[Outcome]:
    wanted = [
        Cell(
            base=base_id,
            dtype=config.bases.dtype,
            task=task_id,
            digests=tuple(sorted({ZERO_SHOT, *digests.values()})),
            split="validation",
            limit=config.evaluation.max_validation,
        )
        for (base_id, task_id), digests in candidates.items()
    ]
    answers = cells.score_all(config, objects, wanted, found)
    outcomes = []
    for (base_id, task_id), digests in candidates.items():
        correct = answers[base_id, task_id]
        scores = {name: float(np.mean(correct[digest])) for name, digest in digests.items()}
        scores["base"] = float(np.mean(correct[ZERO_SHOT]))
        decision = decide(scores, list(digests), config.regenerate.min_gain_over_base)
        digest = digests[decision.arm] if decision.arm else ""
        outcomes.append(Outcome(base=base_id, task=task_id, decision=decision, scores=scores, digest=digest))
    return outcomes


def _publish(
    config: Config, objects: Objects, recipe: str, found: dict[str, BaseRecord], outcomes: list[Outcome]
) -> None:
    """Publish what the gate chose: adapters first, then one release a base that names them all, one adapter a task.

    A run that decided the same at the same time has released them already, and then nothing is added.
    """
    store, releases = AdapterStore(objects), ReleaseStore(objects)
    for base_id in dict.fromkeys(outcome.base for outcome in outcomes if outcome.decision.arm):
        adapters = {adapter.task: adapter for adapter in _current(releases, found[base_id], recipe)}
        for outcome in outcomes:
            if outcome.base == base_id and outcome.decision.arm:
                adapter_id = f"{outcome.task.replace('/', '-')}-{outcome.digest[:12]}"
                adapters[outcome.task] = ReleasedAdapter(
                    task=outcome.task,
                    arm=outcome.decision.arm,
                    adapter_id=adapter_id,
                    digest=outcome.digest,
                    uri=store.publish(outcome.digest, config.regenerate.publish_prefix, base_id, adapter_id),
                    score=outcome.scores[outcome.decision.arm],
                    scores=outcome.scores,
                )
        releases.append(
            Release(
                base=base_id,
                base_fingerprint=found[base_id].fingerprint,
                generator=recipe,
                recipe=config.name,
                adapters=tuple(adapters.values()),
            )
        )


def _published(releases: ReleaseStore, base: BaseRecord) -> list[dict[str, str]]:
    """Rows of what the latest release of a base holds; `path` is empty where the store is no folder."""
    latest = releases.latest(base.id)
    return [
        {
            "base": base.id,
            "task": adapter.task,
            "arm": adapter.arm,
            "adapter_id": adapter.adapter_id,
            "uri": adapter.uri,
            "path": adapter.uri.removeprefix("file://") if adapter.uri.startswith("file://") else "",
        }
        for adapter in (latest.adapters if latest else ())
    ]
