"""What arms are planned from, and what they may ask for at a (base, task, seed).

evaluation = EvaluationContext(run, arms, task_ids, base_ids, manifest, generators)
plan = arm.plan(evaluation)      # (base, task, seed) -> an adapter that is there, one to make, or none
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from oral_ray.config import Config
from oral_ray.evaluation.cells import Request, Unadapted
from oral_ray.evaluation.choice import Choice
from oral_ray.pipeline import corpus
from oral_ray.pipeline.corpus import CorpusRun
from oral_ray.pipeline.run import Run
from oral_ray.pipeline.shards import ShardManifest
from oral_ray.pipeline.static import StaticRun
from oral_ray.tasks import Task

Place = tuple[str, str, int]  # (base, task, seed)
Work = str | Unadapted | CorpusRun | StaticRun | Request | Choice  # a plain text is the digest of a stored adapter
Plan = dict[Place, Work]
Digests = dict[tuple[str, str, str, int], str]  # (base, task, arm, seed) -> digest, or the value of an `Unadapted`


class Sample(NamedTuple):
    """One sampling seed of one generator."""

    generator: int
    """The generator's entry of `evaluation.generator_seeds`."""
    seed: int
    recipe: str

    @property
    def number(self) -> int:
        """The seed that stands in tables: a generator takes a thousand of them (`evaluation.seeds` are below that)."""
        return 1000 * self.generator + self.seed


@dataclass(frozen=True)
class EvaluationContext:
    """The versions and tasks to make adapters for, and what there is to make them from."""

    run: Run
    arms: tuple[str, ...]
    task_ids: tuple[str, ...]
    base_ids: tuple[str, ...]
    manifest: ShardManifest
    generators: Mapping[int, str]
    """The recipe of every generator by its entry of `evaluation.generator_seeds`."""
    made: Digests = field(default_factory=dict)
    """The adapters of the arms that are made so far."""
    scaled: dict[tuple[str, float], str] = field(default_factory=dict)
    """Digests of adapters whose change of the weights is multiplied, by digest and factor, for all arms to share."""

    @property
    def config(self) -> Config:
        """The run's configuration; the arms to make are those of the context."""
        return self.run.config

    def made_by(self, arm: str) -> dict[Place, str]:
        """The adapters of one arm, of those that are made so far."""
        return {(base, task, seed): digest for (base, task, of, seed), digest in self.made.items() if of == arm}

    def samples(self) -> list[Sample]:
        """Every sampling seed of every generator."""
        seeds = self.config.evaluation.seeds
        return [Sample(generator, seed, recipe) for generator, recipe in self.generators.items() for seed in seeds]

    def task(self, task_id: str) -> Task:
        """A built-in task or one of the user's own."""
        return self.run.task(task_id)

    def alike(self, base_id: str) -> list[str]:
        """The ids of the seen versions of the architecture of a base, oldest first."""
        return corpus.alike(self.run, base_id)

    def corpus_run(self, task_id: str, base_ids: Sequence[str], seed: int) -> CorpusRun:
        """The training of the corpus' kind of a task on one version, or on several together."""
        return corpus.plan_run(self.run, task_id, [self.run.bases[base_id] for base_id in base_ids], seed)

    def without_adapter(self, answerer: Unadapted) -> Plan:
        """No adapter on any base, for any task."""
        return {(base_id, task_id, 0): answerer for task_id in self.task_ids for base_id in self.base_ids}

    def trainings(self, versions: Callable[[str], Sequence[str]]) -> Plan:
        """For every base, task and seed of the corpus a training on the versions that are given for the base."""
        return {
            (base_id, task_id, seed): self.corpus_run(task_id, versions(base_id), seed)
            for base_id in self.base_ids
            for task_id in self.task_ids
            for seed in self.config.corpus.seeds
        }

    def request(self, arm: str, base_id: str, task_id: str, prompt: str, seed: int, recipe: str) -> Request:
        """A sample of a generator with the configured number of steps."""
        return Request(
            arm=arm, base=base_id, task=task_id, prompt=prompt, seed=seed, recipe=recipe,
            num_steps=self.config.sampling.num_steps,
        )  # fmt: skip
