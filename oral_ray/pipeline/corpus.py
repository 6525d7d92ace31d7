"""Stage 1: the corpus, LoRA trainings (task x base versions x seed), each done once a recipe.

Reads tasks and bases, writes `adapters/<digest>/` and `records/corpus/<recipe>.json` with the digests of the last K
checkpoints of every run.
"""

import itertools
import time
from collections.abc import Mapping, Sequence

from oral_ray.adapters.artifact import AdapterArtifact
from oral_ray.adapters.layout import AdapterLayout
from oral_ray.adapters.lora import train_adapter
from oral_ray.bases.catalog import BaseRecord
from oral_ray.bases.loading import load_base
from oral_ray.bases.states import states_folder
from oral_ray.cluster import Call
from oral_ray.config import Config, EvolveOrigin, LoraSettings, PretrainOrigin, Record, derive_seed, fingerprint
from oral_ray.errors import ArtifactError, ConfigError, StoreError
from oral_ray.pipeline.answers import check_answers
from oral_ray.pipeline.own_tasks import check_unseen, unseen_among
from oral_ray.pipeline.run import Run, open_run
from oral_ray.pipeline.work import Finished, complete
from oral_ray.store.adapters import AdapterStore
from oral_ray.tasks import Task

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


Corpus = Mapping[str, CorpusEntry]
"""Finished runs by their recipe."""


def train_corpus(run: Run) -> Corpus:
    """What the generators learn from (`corpus.targets`, of all seeds), trained where it is missing."""
    check_unseen(run.config, run.tasks)
    check_start(run)
    return {entry.run.recipe: entry for entry in train_runs(run, plan_targets(run))}


def check_start(run: Run) -> None:
    """ConfigError unless `corpus.start` is whole, fits every run, and was made without the tasks that nobody may see."""
    config = run.config
    if not config.corpus.start:
        return
    kinds = {(run.bases[planned.bases[0]].spec.digest, planned.lora): planned for planned in plan_targets(run)}
    if len(kinds) > 1:
        raise ConfigError(
            f"'corpus.start' is one adapter, and the corpus has {len(kinds)} kinds (architectures of bases.versions, "
            "corpus.kinds); leave it out, or configure one kind"
        )
    for planned in kinds.values():
        layout = _layout(run.bases[planned.bases[0]], planned)
        made = _start(run.adapters, config.corpus.start, layout).provenance
        record = run.records.get("static", made.recipe) or {"run": {"tasks": [made.task], "further": []}}
        if pair := unseen_among(config, run.tasks, [*record["run"]["tasks"], *record["run"]["further"]]):
            raise ConfigError(
                f"'corpus.start': adapter {config.corpus.start[:12]} was trained on {pair[1]!r}, whose examples are those "
                f"of {pair[0]!r} in tasks.unseen; make it again with these tasks (jobs/multitask.py)"
            )


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


def alike(run: Run, base_id: str) -> list[str]:
    """The ids of the seen versions of the architecture of a base, oldest first."""
    architecture = run.bases[base_id].spec.digest
    return [seen for seen in seen_ids(run.config) if run.bases[seen].spec.digest == architecture]


def families(run: Run) -> list[tuple[str, ...]]:
    """The seen versions by architecture, each oldest first."""
    return list(dict.fromkeys(tuple(alike(run, base_id)) for base_id in seen_ids(run.config)))


def lineages(config: Config, seen: Sequence[str]) -> list[list[int]]:
    """How these versions descend from each other, as indices into them, oldest first: one lineage a newest version."""
    parent = parents(config)
    with_children = {parent.get(base_id) for base_id in seen}
    found = []
    for newest in (base_id for base_id in seen if base_id not in with_children):
        lineage = [newest]
        while (older := parent.get(lineage[-1])) in seen:
            lineage.append(str(older))
        found.append([seen.index(base_id) for base_id in reversed(lineage)])
    return found


def plan_targets(run: Run) -> list[CorpusRun]:
    """The runs whose adapters a generator learns to reproduce (`corpus.targets`), of all seeds."""
    return _plan_seeds(run, run.config.corpus.seeds)


def plan_learned(run: Run) -> list[CorpusRun]:
    """The targets of the seeds that this very generator learns from (`corpus.seeds_per_generator`)."""
    seeds, first = run.config.corpus.seeds, run.config.training.seed % len(run.config.corpus.seeds)
    return _plan_seeds(run, (seeds[first:] + seeds[:first])[: run.config.corpus.seeds_per_generator])


def _plan_seeds(run: Run, seeds: Sequence[int]) -> list[CorpusRun]:
    config = run.config
    together = families(run) if config.corpus.targets == "joint" else [(base_id,) for base_id in seen_ids(config)]
    return [
        plan_run(run, task_id, [run.bases[base_id] for base_id in base_ids], seed, lora)
        for lora in config.corpus.kinds or (config.lora,)
        for task_id in config.tasks.ids
        for base_ids in together
        for seed in seeds
    ]


def plan_run(
    run: Run, task_id: str, records: Sequence[BaseRecord], seed: int, lora: LoraSettings | None = None
) -> CorpusRun:
    """A training (of kind `config.lora` unless another is given) and its recipe: everything that decides the result,
    nothing that does not."""
    config = run.config
    lora = lora or config.lora
    training = config.corpus.model_dump(exclude=WHICH_RUNS)
    run_seed = derive_seed(config.seed, "corpus", seed)
    recipe = fingerprint(
        "corpus", RECIPE_VERSION, run.task(task_id).fingerprint, [r.fingerprint for r in records],
        [r.id for r in records], config.bases.dtype, lora, training, run_seed,
    )  # fmt: skip
    return CorpusRun(task=task_id, bases=tuple(r.id for r in records), lora=lora, seed=run_seed, recipe=recipe)


def training_task(run: Run, task_id: str) -> Task:
    """The task with no more training examples than `corpus.num_examples`."""
    task = run.task(task_id)
    return task.model_copy(update={"train": task.train[: run.config.corpus.num_examples]})


def train_runs(run: Run, planned: Sequence[CorpusRun], first: Sequence[Call] = ()) -> list[CorpusEntry]:
    """Do what is not done of these runs, as tasks of the cluster, equal ones once; returns all, finished, in order.

    `first` are other calls to fit into the same time; they start first and must leave their result in the store.
    """

    def train(missing: dict[str, CorpusRun]) -> dict[str, Finished]:
        check_answers(
            run, [((work.task,), [run.bases[base_id] for base_id in work.bases]) for work in missing.values()]
        )
        longest_first = sorted(missing.values(), key=lambda work: -len(work.bases))
        calls = [(train_run, (run.config, work, [run.bases[b] for b in work.bases])) for work in longest_first]
        done = on_cluster(calls)
        return {work.recipe: record for work, record in zip(longest_first, done, strict=True)}

    def on_cluster(calls: Sequence[Call]) -> list[Finished]:
        done = run.on_cluster([*waiting, *calls], label="corpus", retries=run.config.corpus.retries)[len(waiting) :]
        waiting.clear()
        return done

    waiting = list(first)
    wanted = {work.recipe: work for work in planned}
    records = complete(run, "corpus", wanted, train, lambda record: record["digests"], lambda d: _is_there(run, d))
    if waiting:  # there was nothing to train with them
        on_cluster([])
    return [CorpusEntry(run=work, digests=tuple(records[work.recipe]["digests"])) for work in planned]


def train_run(config: Config, planned: CorpusRun, bases: Sequence[BaseRecord]) -> Finished:
    """Worker: train one run, store its checkpoints, commit its record and return it."""
    started, run = time.perf_counter(), open_run(config)
    layout, device = _layout(bases[0], planned), run.device
    loaded = [load_base(base, config.bases.dtype, device) for base in bases]
    keep = states_folder() if config.corpus.num_examples else None
    start = _start(run.adapters, config.corpus.start, layout).factors(layout) if config.corpus.start else None
    artifacts = train_adapter(
        loaded, training_task(run, planned.task), layout, config.corpus, planned.seed, planned.recipe, keep, start
    )
    digests = [run.adapters.put(artifact) for artifact in artifacts]
    record: Finished = {
        "run": planned.model_dump(mode="json"), "digests": digests, "start": config.corpus.start,
        "wall_s": time.perf_counter() - started,
    }  # fmt: skip
    return run.records.commit(
        "corpus", planned.recipe, record, lambda kept: all(_is_there(run, digest) for digest in kept["digests"])
    )


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


def _is_there(run: Run, digest: str) -> bool:
    """Whether an adapter is not missing. One that cannot be looked at fails whoever uses it, by its own name."""
    try:
        return run.adapters.has(digest)
    except StoreError:
        return True
