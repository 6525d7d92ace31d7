"""Stage 1: the corpus, LoRA trainings (task x base versions x seed), each done once a recipe.

Reads tasks and bases, writes `adapters/<digest>/` and `records/corpus/<recipe>.json` with the digests of the last K
checkpoints of every run.
"""

import itertools
import time
from collections.abc import Sequence
from typing import Any

from oral_ray.adapters.artifact import AdapterArtifact
from oral_ray.adapters.layout import AdapterLayout
from oral_ray.adapters.lora import train_adapter
from oral_ray.bases.catalog import BaseRecord
from oral_ray.bases.loading import load_base
from oral_ray.bases.states import states_folder
from oral_ray.cluster import Call, device_of, run_tasks
from oral_ray.config import Config, EvolveOrigin, LoraSettings, PretrainOrigin, Record, derive_seed, fingerprint
from oral_ray.errors import ArtifactError, ConfigError, StoreError
from oral_ray.objects import Objects, in_parallel, open_objects
from oral_ray.pipeline import bases as bases_stage
from oral_ray.pipeline.own_tasks import check_answers, subject_of, task_of
from oral_ray.store.adapters import AdapterStore
from oral_ray.store.records import Records
from oral_ray.tasks import Task, expand

RECIPE_VERSION = 2  # raise it when training changes in a way that the settings do not show
# Of CorpusConfig; the rest says how a run is made.
WHICH_RUNS = {"targets", "kinds", "seeds", "seeds_per_generator", "retries"}


class CorpusRun(Record):
    """One LoRA training: a task on one base, or on several together (`joint`); `recipe` names its result."""

    task: str
    bases: tuple[str, ...]
    lora: LoraSettings
    seed: int
    recipe: str


class CorpusEntry(Record):
    """A finished run: the digests of its last checkpoints, newest last."""

    run: CorpusRun
    digests: tuple[str, ...]


def run(config: Config) -> dict[str, BaseRecord]:
    """Train what the generator learns from, where it is not done; returns the records of all bases."""
    check_unseen(config)
    found = bases_stage.run(config)
    check_start(config, found)
    train_runs(config, plan_targets(config, found), found)
    return found


def check_unseen(config: Config) -> None:
    """ConfigError when a task that no training may see is in the corpus, be it as its opposite or `instructed/`."""
    if pair := _unseen_among(config, config.tasks.ids):
        raise ConfigError(
            f"'tasks.unseen': {pair[0]!r} has the examples of {pair[1]!r} in tasks.ids; what the corpus holds is not "
            "unseen, remove one"
        )


def check_start(config: Config, found: dict[str, BaseRecord]) -> None:
    """ConfigError unless `corpus.start` is whole, fits every run, and was made without the tasks that nobody may see."""
    if not config.corpus.start:
        return
    kinds = {(found[run.bases[0]].spec.digest, run.lora): run for run in plan_targets(config, found)}
    if len(kinds) > 1:
        raise ConfigError(
            f"'corpus.start' is one adapter, and the corpus has {len(kinds)} kinds (architectures of bases.versions, "
            "corpus.kinds); leave it out, or configure one kind"
        )
    objects = open_objects(config.store)
    for run in kinds.values():
        made = _start(AdapterStore(objects), config.corpus.start, _layout(found[run.bases[0]], run)).provenance
        record = Records(objects).get("static", made.recipe) or {"run": {"tasks": [made.task], "further": []}}
        if pair := _unseen_among(config, [*record["run"]["tasks"], *record["run"]["further"]]):
            raise ConfigError(
                f"'corpus.start': adapter {config.corpus.start[:12]} was trained on {pair[1]!r}, whose examples are those "
                f"of {pair[0]!r} in tasks.unseen; make it again with these tasks (jobs/multitask.py)"
            )


def _unseen_among(config: Config, trained: Sequence[str]) -> tuple[str, str] | None:
    """The first of `tasks.unseen` that has the examples of one of these tasks, and that one."""
    known = {subject_of(config, task_id): task_id for task_id in trained}
    pairs = ((task_id, known.get(subject_of(config, task_id))) for task_id in expand(config.tasks.unseen))
    return next(((task_id, found) for task_id, found in pairs if found), None)


def seen_ids(config: Config) -> list[str]:
    """The ids of the versions that the generator may see, oldest first."""
    return [version.id for version in config.bases.versions if version.seen]


def parents(config: Config) -> dict[str, str]:
    """Which configured version each one comes from: the one it was made from, else the one configured before it."""
    ids = [version.id for version in config.bases.versions]
    before = {later: earlier for earlier, later in itertools.pairwise(ids)}
    made = {v.id: v.origin.parent for v in config.bases.versions if isinstance(v.origin, EvolveOrigin | PretrainOrigin)}
    return before | made


def newest_seen(config: Config, base_id: str) -> str:
    """The newest seen version that a base comes from, itself if it is seen; the newest of all for an unknown base."""
    seen, parent = seen_ids(config), parents(config)
    while base_id not in seen and base_id in parent:
        base_id = parent[base_id]
    return base_id if base_id in seen else seen[-1]


def alike(config: Config, found: dict[str, BaseRecord], base_id: str) -> list[str]:
    """The ids of the seen versions of the architecture of a base, oldest first."""
    return [seen for seen in seen_ids(config) if found[seen].spec.digest == found[base_id].spec.digest]


def families(config: Config, found: dict[str, BaseRecord]) -> list[tuple[str, ...]]:
    """The seen versions by architecture, each oldest first."""
    return list(dict.fromkeys(tuple(alike(config, found, base_id)) for base_id in seen_ids(config)))


def lines(config: Config, seen: Sequence[str]) -> list[list[int]]:
    """The lines of descent of these versions, as indices into them, oldest first: one a newest version."""
    parent = parents(config)
    found = []
    for tip in (base_id for base_id in seen if base_id not in {parent.get(other) for other in seen}):
        line = [tip]
        while (older := parent.get(line[-1])) in seen:
            line.append(str(older))
        found.append([seen.index(base_id) for base_id in reversed(line)])
    return found


def plan_targets(config: Config, found: dict[str, BaseRecord]) -> list[CorpusRun]:
    """The runs whose adapters a generator learns to reproduce (`corpus.targets`), of all seeds."""
    seen = seen_ids(config)
    together = [(base_id,) for base_id in seen]
    if config.corpus.targets == "joint":
        together = families(config, found)
    return [
        plan_run(config, task_id, [found[base_id] for base_id in base_ids], seed, lora)
        for lora in config.corpus.kinds or (config.lora,)
        for task_id in config.tasks.ids
        for base_ids in together
        for seed in config.corpus.seeds
    ]


def plan_learned(config: Config, found: dict[str, BaseRecord]) -> list[CorpusRun]:
    """The targets of the seeds that this very generator learns from (`corpus.seeds_per_generator`)."""
    seeds, first = config.corpus.seeds, config.training.seed % len(config.corpus.seeds)
    learned = (seeds[first:] + seeds[:first])[: config.corpus.seeds_per_generator]
    settings = config.corpus.model_copy(update={"seeds": learned})
    return plan_targets(config.model_copy(update={"corpus": settings}), found)


def plan_run(
    config: Config, task_id: str, records: Sequence[BaseRecord], seed: int, lora: LoraSettings | None = None
) -> CorpusRun:
    """One run (of kind `config.lora` unless another is given) and its recipe: everything that decides the result, nothing
    that does not."""
    lora = lora or config.lora
    training = config.corpus.model_dump(exclude=WHICH_RUNS)
    run_seed = derive_seed(config.seed, "corpus", seed)
    recipe = fingerprint(
        "corpus", RECIPE_VERSION, task_of(config, task_id).fingerprint, [r.fingerprint for r in records],
        [r.id for r in records], config.bases.dtype, lora, training, run_seed,
    )  # fmt: skip
    return CorpusRun(task=task_id, bases=tuple(r.id for r in records), lora=lora, seed=run_seed, recipe=recipe)


def training_task(config: Config, task_id: str) -> Task:
    """The task with no more training examples than `corpus.num_examples`."""
    task = task_of(config, task_id)
    return task.model_copy(update={"train": task.train[: config.corpus.num_examples]})


def train_runs(
    config: Config, runs: Sequence[CorpusRun], found: dict[str, BaseRecord], beside: Sequence[Call] = ()
) -> list[CorpusEntry]:
    """Do what is not done of these runs, as Ray tasks, equal ones once; returns all of them, finished, in order.

    `beside` are other calls to fit into the same tasks' time; they start first and must leave their result in the store.
    """
    objects = open_objects(config.store)
    wanted = {run.recipe: run for run in runs}
    entries = dict(zip(wanted, in_parallel(objects, lambda run: _entry(objects, run), wanted.values()), strict=True))
    missing = [run for recipe, run in wanted.items() if entries[recipe] is None]
    check_answers(config, [(run.task, [found[base_id] for base_id in run.bases]) for run in missing])
    calls: list[Call] = [
        (train_run, (config, run, [found[b] for b in run.bases]))
        for run in sorted(missing, key=lambda run: -len(run.bases))
    ]
    done = run_tasks(
        [*beside, *calls], config.cluster, determinism=config.determinism, retries=config.corpus.retries, label="corpus"
    )
    entries |= {entry.run.recipe: entry for entry in done[len(beside) :]}
    return [entry for run in runs if (entry := entries[run.recipe]) is not None]


def train_run(config: Config, run: CorpusRun, bases: Sequence[BaseRecord]) -> CorpusEntry:
    """Worker: train one run, store its checkpoints, commit its record."""
    started = time.perf_counter()
    objects = open_objects(config.store)
    layout = _layout(bases[0], run)
    device = device_of(config.cluster.gpus_per_task)
    loaded = [load_base(base, config.bases.dtype, device) for base in bases]
    keep = states_folder() if config.corpus.num_examples else None
    store = AdapterStore(objects)
    start = _start(store, config.corpus.start, layout).factors(layout) if config.corpus.start else None
    artifacts = train_adapter(
        loaded, training_task(config, run.task), layout, config.corpus, run.seed, run.recipe, keep, start
    )
    digests = [store.put(artifact) for artifact in artifacts]
    record = {"run": run.model_dump(mode="json"), "digests": digests, "start": config.corpus.start}
    record |= {"wall_s": time.perf_counter() - started}
    kept = Records(objects).commit("corpus", run.recipe, record, lambda kept: _are_there(store, kept))
    return CorpusEntry(run=run, digests=tuple(kept["digests"]))


def _layout(base: BaseRecord, run: CorpusRun) -> AdapterLayout:
    return AdapterLayout.of(base.spec, run.lora, token_dim=base.spec.hidden_size)


def _start(store: AdapterStore, digest: str, layout: AdapterLayout) -> AdapterArtifact:
    """The adapter that runs start from; ConfigError unless it is there, whole, of this layout and as strong."""
    try:
        artifact = store.get(digest)
        artifact.check(layout)
    except ArtifactError as error:
        raise ConfigError(f"'corpus.start': {error}; jobs/multitask.py makes one and prints its digest") from None
    if artifact.lora.lora_alpha != layout.lora.lora_alpha:
        raise ConfigError(
            f"'corpus.start': adapter {digest[:12]} has lora_alpha={artifact.lora.lora_alpha:g} and would be "
            f"{layout.lora.lora_alpha:g} here; set lora.lora_alpha to its own, or make it again (jobs/multitask.py)"
        )
    return artifact


def _entry(objects: Objects, run: CorpusRun) -> CorpusEntry | None:
    """A run on record whose adapters are all still there; a deleted one is trained again."""
    record = Records(objects).get("corpus", run.recipe)
    if record is None or not _are_there(AdapterStore(objects), record):
        return None
    return CorpusEntry(run=run, digests=tuple(record["digests"]))


def _are_there(store: AdapterStore, record: dict[str, Any]) -> bool:
    """Whether no adapter of a run is missing. One that cannot be looked at fails whoever uses it, by its own name."""
    try:
        return all(store.has(digest) for digest in record["digests"])
    except StoreError:
        return True
