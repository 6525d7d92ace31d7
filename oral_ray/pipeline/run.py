"""A run: what is resolved once where a job begins, and handed to every stage.

    run = begin_run(config)                     # reads the task folders, opens the store
    with run.session():
        run = resolve_bases(run)                # `run.bases`: the records of the configured versions
        corpus = train_corpus(run)              # a stage takes the run and what earlier stages made
        manifest = write_shards(run, corpus)
        recipe = train_generator(run, manifest)

A worker is sent the configuration, and opens the store once with `open_run`. What is read of the store is remembered in
the run's handles (`objects.ReadOnce`, `Tasks`) and forgotten with it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from torch import Tensor

from oral_ray.adapters.tokens import TokenStats
from oral_ray.bases.catalog import BaseRecord
from oral_ray.cluster import Call, device_of, each_task, run_tasks, session
from oral_ray.config import Config
from oral_ray.generator.model import Generator
from oral_ray.objects import Objects, ReadOnce, in_parallel, open_objects
from oral_ray.pipeline.own_tasks import Tasks, check_unseen, resolve_tasks
from oral_ray.store.adapters import AdapterStore
from oral_ray.store.bases import BaseStore, stored_probes
from oral_ray.store.generators import GeneratorCard, describe_generator, get_generator, read_metrics
from oral_ray.store.records import Records
from oral_ray.store.shards import ShardManifest, read_stats
from oral_ray.tasks import Task

LOOK_S = 60.0  # a checkpoint that lands while a run goes on is for the next one
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class Run:
    """A configuration whose tasks are resolved, and the handles to its store.

    `objects` are for what has no handle of its own; `base_store` reads past what the run remembers, as checkpoints land
    whenever they land. `bases` are the records of the configured versions by id, once they are resolved.
    """

    config: Config
    objects: Objects
    base_store: BaseStore
    adapters: AdapterStore
    records: Records
    tasks: Tasks
    bases: Mapping[str, BaseRecord] = field(default_factory=dict)
    _cards: dict[str, GeneratorCard] = field(default_factory=dict)

    def over(self, config: Config) -> "Run":
        """The same store, and what is known of it, with another configuration."""
        return replace(self, config=config, tasks=self.tasks.over(config.tasks.folders))

    def with_bases(self, bases: Mapping[str, BaseRecord]) -> "Run":
        """The run with the records of its versions."""
        return replace(self, bases=bases)

    def task(self, task_id: str) -> Task:
        """A task that ships, or one of the user's own; TaskError for none."""
        return self.tasks.get(task_id)

    def session(self) -> AbstractContextManager[None]:
        """The block in which the run may hand work to the cluster."""
        return session(self.config.cluster, self.config.determinism)

    def on_cluster(self, calls: Sequence[Call], label: str, retries: int) -> list[Any]:
        """The results of calls as tasks of the cluster, in order; the first failure is raised when all have ended."""
        return run_tasks(calls, self.config.cluster, determinism=self.config.determinism, retries=retries, label=label)

    def each_on_cluster(
        self, calls: Sequence[Call], label: str, retries: int, retry_on: tuple[type[Exception], ...] = ()
    ) -> Iterator[tuple[int, Any]]:
        """(index, result) of every call as it ends; the result of one that failed is its exception."""
        return each_task(
            calls, self.config.cluster, determinism=self.config.determinism, retries=retries, label=label,
            retry_on=retry_on,
        )  # fmt: skip

    def in_parallel(self, function: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
        """`function` of every item, in order, as many at once as the store takes."""
        return list(in_parallel(self.objects, function, items))

    def probes(self, base: BaseRecord) -> dict[str, Tensor]:
        """The weight probes of a base, computed where the store has none of it."""
        return stored_probes(self.objects, base, self.config.condition)

    def generator(self, recipe: str) -> Generator:
        """A generator by its recipe; GeneratorError where it is missing or damaged."""
        return get_generator(self.objects, recipe)

    def training_log(self, recipe: str) -> list[dict[str, Any]]:
        """The training log of a generator, one row per report; empty where none was stored with it."""
        return read_metrics(self.objects, recipe)

    def generator_card(self, recipe: str) -> GeneratorCard:
        """A generator without its weights; GeneratorError where it is missing or damaged."""
        if recipe not in self._cards:
            self._cards[recipe] = describe_generator(self.objects, recipe)
        return self._cards[recipe]

    def token_stats(self, manifest: ShardManifest) -> TokenStats:
        """What the tokens of shards are normalised by."""
        return read_stats(self.objects, manifest)

    @property
    def device(self) -> str:
        """Where a worker of this run computes; ConfigError where it was given a GPU that torch cannot use."""
        return device_of(self.config.cluster.gpus_per_task)


def open_run(config: Config) -> Run:
    """The run of a configuration whose tasks are resolved: in a worker, which is sent the configuration."""
    return _run_over(config, open_objects(config.store))


def begin_run(config: Config, keep: bool = True) -> Run:
    """The run of a configuration as a user gave it: task folders are read, checked and, with `keep`, put into the store.

    TaskError for a task that there is not; ConfigError where the corpus has an unseen task.
    """
    objects = open_objects(config.store)
    run = _run_over(resolve_tasks(config, objects, keep), objects)
    check_unseen(run.config, run.tasks)
    return run


def _run_over(config: Config, objects: Objects) -> Run:
    once = ReadOnce(objects)
    return Run(
        config=config,
        objects=once,
        base_store=BaseStore(objects, config.bases.prefix, LOOK_S),
        adapters=AdapterStore(once),
        records=Records(once),
        tasks=Tasks(once, config.tasks.folders),
    )
