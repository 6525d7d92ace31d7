"""What the stages of an evidence suite share: the run over the candidate tasks, and the walk over those that were kept."""

from functools import cached_property

import pandas as pd

from oral_ray.config import Config, fingerprint
from oral_ray.errors import EvaluationError
from oral_ray.evaluation.evaluate import evaluate_arms
from oral_ray.pipeline.bases import resolve_bases
from oral_ray.pipeline.corpus import WHICH_RUNS, Corpus, train_corpus
from oral_ray.pipeline.run import Run
from oral_ray.pipeline.shards import ShardManifest, write_shards
from oral_ray.pipeline.walk import Trained, train_current, train_seeds


class Suite:
    """An evidence suite: what several of its stages need is made once, when the first of them asks."""

    def __init__(self, run: Run) -> None:
        self.candidates = run
        """The run over the candidate tasks."""

    @property
    def config(self) -> Config:
        """The configuration with the candidate tasks."""
        return self.candidates.config

    @cached_property
    def with_bases(self) -> Run:
        """The run over the candidate tasks, with its bases."""
        return resolve_bases(self.candidates)

    @cached_property
    def run(self) -> Run:
        """The run over the tasks that passed the screening, with its bases; EvaluationError when there was none."""
        return self.with_bases.over(kept_tasks(self.candidates))

    @cached_property
    def corpus(self) -> Corpus:
        """The corpus of the tasks that were kept."""
        return train_corpus(self.run)

    @cached_property
    def manifest(self) -> ShardManifest:
        """Its shards."""
        return write_shards(self.run, self.corpus)

    @cached_property
    def trained(self) -> Trained:
        """All that there is to evaluate."""
        return train_current(self.run, self.corpus, self.manifest)

    @cached_property
    def generators(self) -> dict[int, str]:
        """The recipes of the generators by their entries of `evaluation.generator_seeds`."""
        return train_seeds(self.trained)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """The scores of all arms, which are in the tables of `out` as well."""
        return evaluate_arms(self.trained, self.generators)


def kept_tasks(run: Run) -> Config:
    """The configuration with the tasks that passed the screening; EvaluationError when there was none."""
    record = run.records.get("screen", screen_recipe(run))
    if record is None:
        raise EvaluationError("the tasks are not screened yet; run the stage 'screen' with the same configuration")
    tasks = run.config.tasks.model_copy(update={"ids": tuple(record["kept"])})
    return run.config.model_copy(update={"tasks": tasks})


def screen_recipe(run: Run) -> str:
    """What names the record of a screening."""
    config = run.config
    corpus_settings = config.corpus.model_dump(mode="json", exclude=WHICH_RUNS | {"start"})
    tasks = [run.task(task_id).fingerprint for task_id in config.tasks.ids]
    return fingerprint(
        "screen", 2, tasks, config.bases.versions[0], config.bases.dtype, config.lora, corpus_settings,
        config.corpus.seeds[0], config.seed, config.evaluation.max_validation, config.evaluation.num_bootstrap,
    )  # fmt: skip
