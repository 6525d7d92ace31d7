"""One (base, task) of a regeneration: make the candidates, score them on validation data, decide, publish the winner.

Candidates are `num_candidates` samples of the generator, the adapters to reuse, and where configured the best of them
after a few steps on this very base (`refined`). A candidate that cannot be used (damaged, not finite, of another shape,
without a score that is a number) is refused by name; the others compete. Reads no test data.

The first decision counts: it is kept as a record, so that a second run, or one at the same time, publishes the same.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from oral_ray.adapters.artifact import rebased
from oral_ray.adapters.layout import AdapterLayout
from oral_ray.bases.catalog import BaseRecord
from oral_ray.config import BaseId, Config, Record, fingerprint
from oral_ray.errors import ArtifactError, EvaluationError
from oral_ray.evaluation import cells
from oral_ray.evaluation.arms import refined
from oral_ray.evaluation.arms.generated import GENERATED
from oral_ray.evaluation.cells import Cell, Request, Unadapted
from oral_ray.generation.factory import effective_sampling
from oral_ray.modalities import Metric
from oral_ray.nightly.plan import GateDecision, decide
from oral_ray.pipeline import static
from oral_ray.pipeline.run import Run, open_run
from oral_ray.store.adapters import AdapterStore, Use
from oral_ray.store.releases import ReleasedAdapter
from oral_ray.store.signing import signer_name
from oral_ray.version import code_version

RECIPE_VERSION = 1


class Item(Record):
    """What is decided together: a task on a base, the generator's recipe, and digests to reuse by arm."""

    base: BaseRecord
    task: str
    task_fingerprint: str
    recipe: str
    reuse: dict[str, str]


class Candidate(NamedTuple):
    """An adapter that competes: its name in outcomes and releases, and its arm, as `regenerate.candidates` names it."""

    name: str
    arm: str
    digest: str


class Outcome(Record):
    """The gate's decision, the validation score of every candidate, why others were refused, the winner's digest."""

    base_id: BaseId
    task: str
    decision: GateDecision
    scores: dict[str, float]
    refused: dict[str, str]
    digest: str


def decided(run: Run, item: Item) -> Outcome | None:
    """The outcome of an item that was decided before."""
    kept = run.records.get("gate", _recipe(run.config, item))
    return None if kept is None else Outcome.model_validate(kept)


def regenerate_item(config: Config, item: Item) -> tuple[Outcome, ReleasedAdapter | None]:
    """Worker: decide, unless it was before, and publish what won; what was published may be released.

    Where what won has been deleted or damaged since, it is decided again, from candidates that are there.
    """
    run = open_run(config)
    outcome = decided(run, item)
    if outcome is None or not _holds(run.adapters, outcome):
        outcome = _decide(run, item)
    arm = outcome.decision.arm
    return outcome, None if arm is None else _publish(run, item, outcome, arm)


def _publish(run: Run, item: Item, outcome: Outcome, arm: str) -> ReleasedAdapter:
    """Put what won into the serving view, under the name by which its base is served."""
    store, settings, keys = run.adapters, run.config.regenerate, run.config.store.signing
    served_name = settings.served_name(item.base.id)
    artifact = rebased(store.get(outcome.digest), item.base.id, item.base.fingerprint, served_name)
    digest, use = store.put(artifact), Use(artifact.provenance, outcome.task, arm)
    view = f"{settings.publish_prefix}/{item.base.id}"
    adapter_id = _adapter_id(store, view, digest, use)
    uri = store.publish(digest, settings.publish_prefix, item.base.id, adapter_id, keys.private_key, use)
    if keys.public_key is not None:
        store.check_published(f"{view}/{adapter_id}", digest, keys.public_key)
    return ReleasedAdapter(
        task=outcome.task,
        arm=arm,
        adapter_id=adapter_id,
        digest=digest,
        uri=uri,
        score=outcome.scores[arm],
        scores=outcome.scores,
        seed=artifact.provenance.seed,
        code_version=code_version(),
        signer=signer_name(key) if (key := keys.public_key or keys.private_key) else "",
    )


def _adapter_id(store: AdapterStore, view: str, digest: str, use: Use) -> str:
    """Task and digest; and the base's fingerprint, where the same was published for another upload of the same base."""
    name = f"{use.task.strip('/').replace('/', '-')}-{digest[:12]}"
    before = store.published_for(f"{view}/{name}")
    is_other = before is not None and before.base_fingerprint != use.provenance.base_fingerprint
    return f"{name}-{use.provenance.base_fingerprint[:8]}" if is_other else name


def _holds(store: AdapterStore, outcome: Outcome) -> bool:
    """Whether what won is still there, and whole."""
    return outcome.decision.arm is None or store.is_whole(outcome.digest)


def _decide(run: Run, item: Item) -> Outcome:
    settings = run.config.regenerate
    candidates, refused = _candidates(run, item)
    metric, scores = _score(run, item, candidates)
    wanted = settings.candidates
    best = metric.best({candidate.name: scores[candidate.name] for candidate in candidates})
    if "refined" in wanted and best is not None:
        start = next(candidate.digest for candidate in candidates if candidate.name == best)
        made = _refined(run, item, start)
        candidates.append(made)
        scores |= _score(run, item, [made])[1]
    for name in [name for name, figure in scores.items() if math.isnan(figure)]:
        refused[name] = f"its {metric.name} on the validation examples is no number"
        del scores[name]
    names = [candidate.name for candidate in sorted(candidates, key=lambda candidate: wanted.index(candidate.arm))]
    decision = decide(scores, names, settings.min_gain_over_base, metric)
    digests = {candidate.name: candidate.digest for candidate in candidates}
    outcome = Outcome(
        base_id=item.base.id,
        task=item.task,
        decision=decision,
        scores=scores,
        refused=refused,
        digest=digests[decision.arm] if decision.arm else "",
    )
    if refused:  # what is damaged today may be mended tomorrow
        return outcome
    record = outcome.model_dump(mode="json")
    kept = run.records.commit(
        "gate", _recipe(run.config, item), record, lambda kept: _holds(run.adapters, Outcome.model_validate(kept))
    )
    return Outcome.model_validate(kept)


def _refined(run: Run, item: Item, start: str) -> Candidate:
    """A few steps on this very base from another candidate's adapter (its digest)."""
    planned = refined.refined_run(run.config, "refined_generated", item.base.id, item.task, start, run.config.seed)
    planned = planned.model_copy(update={"steps": run.config.regenerate.refine_steps})
    return Candidate("refined", "refined", static.train_here(run, planned, [item.base]))


def _candidates(run: Run, item: Item) -> tuple[list[Candidate], dict[str, str]]:
    """The candidates that can be used, and reasons against the others by name."""
    found: list[Candidate] = []
    refused: dict[str, str] = {}
    requests = _requests(run, item)
    names = [GENERATED if request.seed == 0 else f"{GENERATED}-{request.seed}" for request in requests]
    try:
        digests = cells.generate_here(run, requests, item.base)
        found += [Candidate(name, GENERATED, digest) for name, digest in zip(names, digests, strict=True)]
    except ArtifactError as error:
        refused |= dict.fromkeys(names, str(error))
    layout = AdapterLayout.of(item.base.spec, run.config.lora, token_dim=item.base.spec.hidden_size)
    for arm, digest in item.reuse.items():
        try:
            run.adapters.get(digest).check(layout)
            found.append(Candidate(arm, arm, digest))
        except ArtifactError as error:
            refused[arm] = str(error)
    return found, refused


def _requests(run: Run, item: Item) -> list[Request]:
    config = run.config
    return [
        Request(
            arm=GENERATED,
            base_id=item.base.id,
            task=item.task,
            prompt=run.task(item.task).prompt,
            seed=seed,
            recipe=item.recipe,
            num_steps=config.sampling.num_steps,
        )
        for seed in range(config.regenerate.num_candidates)
        if GENERATED in config.regenerate.candidates
    ]


def _score(run: Run, item: Item, candidates: Sequence[Candidate]) -> tuple[Metric, dict[str, float]]:
    """The metric of the task on this base, and the figures on validation by candidate name and of the bare `base`.

    EvaluationError where the bare base has no figure that is a number: there is nothing to be better than.
    """
    digests = {"base": str(Unadapted.BASE)} | {candidate.name: candidate.digest for candidate in candidates}
    cell = Cell(
        base_id=item.base.id,
        dtype=run.config.bases.dtype,
        task=item.task,
        digests=tuple(sorted(set(digests.values()))),
        split="validation",
        limit=run.config.evaluation.max_validation,
    )
    scored = cells.score_here(run, cell, item.base)
    figures = {name: scored.figure(digest) for name, digest in digests.items()}
    if math.isnan(figures["base"]):
        raise EvaluationError(
            f"the {scored.metric.name} of the bare base {item.base.id} on the validation examples of {item.task} is no "
            "number; look at its answers with oral-ray score"
        )
    return scored.metric, figures


def _recipe(config: Config, item: Item) -> str:
    """Everything that decides: base, task, candidates and how they are made and compared."""
    settings = config.regenerate.model_dump(
        mode="json", include={"candidates", "num_candidates", "min_gain_over_base", "refine_steps"}
    )
    return fingerprint(
        "gate", RECIPE_VERSION, item.base.id, item.base.fingerprint, item.task_fingerprint, item.recipe,
        item.reuse, settings, config.lora, config.bases.dtype, config.evaluation.max_validation,
        effective_sampling(config.sampling, config.determinism), config.seed,
    )  # fmt: skip
