"""Stage 5: for every complete, unreleased base version: generate, compare with reuse, gate on validation, publish.

Reads generators, corpus and landed bases; writes `<publish_prefix>/<base>/<adapter_id>/` and `releases/<base>/`. Reads
no test data.
"""

import fnmatch
import logging

import numpy as np

from oral_ray.bases.catalog import BaseRecord, SkippedBase, discover
from oral_ray.cluster import run_tasks
from oral_ray.config import Config, Section
from oral_ray.objects import Objects, open_objects
from oral_ray.release import GateDecision, PlanItem, decide, plan_releases
from oral_ray.stages import cells, corpus, train
from oral_ray.stages.cells import ZERO_SHOT, Cell, Request
from oral_ray.stages.evaluate import score_cells
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
    """What one run found, planned, decided and published."""

    skipped_bases: tuple[SkippedBase, ...]
    plan: tuple[PlanItem, ...]
    outcomes: tuple[Outcome, ...]
    published: tuple[dict[str, str], ...]
    releases: dict[str, int]


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
    published, numbers = _publish(config, objects, recipe, found, outcomes)
    return RegenerationSummary(
        skipped_bases=tuple(skipped),
        plan=tuple(plan),
        outcomes=tuple(outcomes),
        published=tuple(published),
        releases=numbers,
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
    if requests:
        made = run_tasks(
            cells.generate, [(config, requests, found)], config.cluster,
            determinism=config.determinism, retries=config.regenerate.retries, label="generate",
        )[0]  # fmt: skip
        for request, digest in zip(requests, made, strict=True):
            name = "generated" if request.seed == 0 else f"generated-{request.seed}"
            digests[request.base, request.task][name] = digest
    known = corpus.run(config)
    for item in todo:
        same = [b for b in corpus.seen_ids(config) if known[b].spec.digest == found[item.base].spec.digest]
        for name, base_id in (("reuse_new", same[-1:]), ("reuse_old", same[:1])):
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
            task=task_id,
            digests=tuple(sorted({ZERO_SHOT, *digests.values()})),
            split="validation",
            limit=config.evaluation.max_validation,
        )
        for (base_id, task_id), digests in candidates.items()
    ]
    answers = score_cells(config, objects, wanted, found)
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
) -> tuple[list[dict[str, str]], dict[str, int]]:
    store, releases = AdapterStore(objects), ReleaseStore(objects)
    published: list[dict[str, str]] = []
    numbers: dict[str, int] = {}
    for base_id in dict.fromkeys(outcome.base for outcome in outcomes):
        adapters = list(_current(releases, found[base_id], recipe))
        num_before = len(adapters)
        for outcome in outcomes:
            if outcome.base == base_id and outcome.decision.arm:
                adapter_id = f"{outcome.task.replace('/', '-')}-{outcome.digest[:12]}"
                uri = store.publish(outcome.digest, config.regenerate.publish_prefix, base_id, adapter_id)
                adapters.append(
                    ReleasedAdapter(
                        task=outcome.task,
                        arm=outcome.decision.arm,
                        adapter_id=adapter_id,
                        digest=outcome.digest,
                        uri=uri,
                        score=outcome.scores[outcome.decision.arm],
                        scores=outcome.scores,
                    )
                )
                published.append(
                    {
                        "base": base_id,
                        "task": outcome.task,
                        "arm": outcome.decision.arm,
                        "adapter_id": adapter_id,
                        "uri": uri,
                        "path": uri.removeprefix("file://") if uri.startswith("file://") else "",
                    }
                )
        if len(adapters) > num_before:
            release = Release(
                base=base_id,
                base_fingerprint=found[base_id].fingerprint,
                generator=recipe,
                recipe=config.name,
                adapters=tuple(adapters),
            )
            numbers[base_id] = releases.append(release)
    return published, numbers
