"""One (base, task) of a regeneration: make the candidates, score them on validation data, decide, publish the winner.

Candidates are `num_candidates` samples of the generator, the adapters to reuse, and where configured the best of them
after a few steps on this very base (`refined`). A candidate that cannot be used (damaged, not finite, of another shape)
is refused by name; the others compete. Reads no test data.

The first decision counts: it is kept as a record, so that a second run, or one at the same time, publishes the same.
"""

from collections.abc import Mapping

import numpy as np

from oral_ray.adapters.artifact import rebased
from oral_ray.adapters.layout import AdapterLayout
from oral_ray.bases.catalog import BaseRecord
from oral_ray.config import Config, Section, fingerprint
from oral_ray.errors import ArtifactError
from oral_ray.evaluation import cells, static
from oral_ray.evaluation.arms import refined
from oral_ray.evaluation.arms.generated import GENERATED
from oral_ray.evaluation.cells import Cell, Request, Unadapted
from oral_ray.generation.factory import effective_sampling
from oral_ray.nightly.plan import GateDecision, decide
from oral_ray.objects import open_objects
from oral_ray.pipeline.own_tasks import task_of
from oral_ray.store.adapters import AdapterStore, Use
from oral_ray.store.records import Records
from oral_ray.store.releases import ReleasedAdapter
from oral_ray.store.signing import signer_name
from oral_ray.version import code_version

RECIPE_VERSION = 1


class Item(Section):
    """What is decided together: a task on a base, the generator's recipe, and digests to reuse by candidate name."""

    base: BaseRecord
    task: str
    task_fingerprint: str
    recipe: str
    reuse: dict[str, str]


class Outcome(Section):
    """The gate's decision, the validation score of every candidate, why others were refused, the winner's digest."""

    base: str
    task: str
    decision: GateDecision
    scores: dict[str, float]
    refused: dict[str, str]
    digest: str


def decided(config: Config, item: Item) -> Outcome | None:
    """The outcome of an item that was decided before."""
    kept = Records(open_objects(config.store)).get("gate", _recipe(config, item))
    return None if kept is None else Outcome.model_validate(kept)


def regenerate_item(config: Config, item: Item) -> tuple[Outcome, ReleasedAdapter | None]:
    """Worker: decide, unless it was before, and publish what won; what was published may be released.

    Where what won has been deleted or damaged since, it is decided again, from candidates that are there.
    """
    outcome = decided(config, item)
    if outcome is None or not _holds(AdapterStore(open_objects(config.store)), outcome):
        outcome = _decide(config, item)
    arm = outcome.decision.arm
    return outcome, None if arm is None else _publish(config, item, outcome, arm)


def _publish(config: Config, item: Item, outcome: Outcome, arm: str) -> ReleasedAdapter:
    """Put what won into the serving view, under the name by which its base is served."""
    store, keys = AdapterStore(open_objects(config.store)), config.store.signing
    served_name = config.regenerate.served_name(item.base.id)
    artifact = rebased(store.get(outcome.digest), item.base.id, item.base.fingerprint, served_name)
    digest, use = store.put(artifact), Use(artifact.provenance, outcome.task, arm)
    view = f"{config.regenerate.publish_prefix}/{item.base.id}"
    adapter_id = _adapter_id(store, view, digest, use)
    uri = store.publish(digest, config.regenerate.publish_prefix, item.base.id, adapter_id, keys.private_key, use)
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


def _decide(config: Config, item: Item) -> Outcome:
    digests, refused = _candidates(config, item)
    scores = _score(config, item, digests)
    wanted = config.regenerate.candidates
    if "refined" in wanted and digests:
        best = digests[max(digests, key=lambda name: scores[name])]
        run = refined.refined_run(config, "refined_generated", item.base.id, item.task, best, config.seed)
        run = run.model_copy(update={"steps": config.regenerate.refine_steps})
        digests["refined"] = static.train_here(config, run, [item.base])
        scores |= _score(config, item, {"refined": digests["refined"]})
    ordered = sorted(digests, key=lambda name: wanted.index(_arm(name)))
    decision = decide(scores, ordered, config.regenerate.min_gain_over_base)
    outcome = Outcome(
        base=item.base.id,
        task=item.task,
        decision=decision,
        scores=scores,
        refused=refused,
        digest=digests[decision.arm] if decision.arm else "",
    )
    if refused:  # what is damaged today may be mended tomorrow
        return outcome
    objects = open_objects(config.store)
    store, record = AdapterStore(objects), outcome.model_dump(mode="json")
    kept = Records(objects).commit(
        "gate", _recipe(config, item), record, lambda kept: _holds(store, Outcome.model_validate(kept))
    )
    return Outcome.model_validate(kept)


def _candidates(config: Config, item: Item) -> tuple[dict[str, str], dict[str, str]]:
    """Digests of the candidates that can be used, and reasons against the others, by name."""
    found: dict[str, str] = {}
    refused: dict[str, str] = {}
    requests = _requests(config, item)
    names = ["generated" if request.seed == 0 else f"generated-{request.seed}" for request in requests]
    try:
        found |= dict(zip(names, cells.generate_here(config, requests, {item.base.id: item.base}), strict=True))
    except ArtifactError as error:
        refused |= dict.fromkeys(names, str(error))
    layout = AdapterLayout.of(item.base.spec, config.lora, token_dim=item.base.spec.hidden_size)
    store = AdapterStore(open_objects(config.store))
    for name, digest in item.reuse.items():
        try:
            store.get(digest).check(layout)
            found[name] = digest
        except ArtifactError as error:
            refused[name] = str(error)
    return found, refused


def _requests(config: Config, item: Item) -> list[Request]:
    return [
        Request(
            arm=GENERATED,
            base=item.base.id,
            task=item.task,
            prompt=task_of(config, item.task).prompt,
            seed=seed,
            recipe=item.recipe,
            num_steps=config.sampling.num_steps,
        )
        for seed in range(config.regenerate.num_candidates)
        if "generated" in config.regenerate.candidates
    ]


def _score(config: Config, item: Item, digests: Mapping[str, str]) -> dict[str, float]:
    """Validation accuracy by candidate name, and that of the bare `base`."""
    cell = Cell(
        base=item.base.id,
        dtype=config.bases.dtype,
        task=item.task,
        digests=tuple(sorted({Unadapted.BASE, *digests.values()})),
        split="validation",
        limit=config.evaluation.max_validation,
    )
    if (left := cells.missing(config, cell, item.base)).digests:
        cells.score_cell(config, left, item.base)
    answers = cells.read_cell(config, cell, item.base)
    return {name: float(np.mean(answers[digest])) for name, digest in {"base": Unadapted.BASE, **digests}.items()}


def _arm(name: str) -> str:
    """`generated-3` is a sample of `generated`."""
    return name.partition("-")[0]


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
