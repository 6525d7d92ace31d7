"""Static adapters: trained on mixes of base versions, or on one, from scratch or from another adapter.

Those on virtual versions get as many task gradients as the generator gets: those of the functional phase, or
`evaluation.task_gradients` where that is set. evaluation/arms/{joint_virtual,multitask,refined}.py say who trains what.
"""

from collections.abc import Sequence

from pydantic import AliasChoices, ConfigDict, Field

from oral_ray.adapters.artifact import Provenance, build_artifact
from oral_ray.adapters.layout import AdapterLayout
from oral_ray.adapters.lora import initial_factors
from oral_ray.bases.catalog import BaseRecord
from oral_ray.bases.loading import load_base
from oral_ray.bases.states import states_folder
from oral_ray.config import Config, Record, derive_seed, fingerprint
from oral_ray.errors import EvaluationError
from oral_ray.generator.functional import FunctionalSource, train_static
from oral_ray.pipeline.answers import check_answers
from oral_ray.pipeline.corpus import lineages, training_task
from oral_ray.pipeline.run import Run, open_run
from oral_ray.pipeline.work import Finished, complete
from oral_ray.version import code_version

RECIPE_VERSION = 2


class StaticRun(Record):
    """One training on mixes of `bases`: its tasks, the adapter it starts from (empty: a fresh one), its length."""

    arm: str
    bases: tuple[str, ...]
    tasks: tuple[str, ...]
    auxiliary: tuple[str, ...] = Field(
        default=(), serialization_alias="further", validation_alias=AliasChoices("further", "auxiliary")
    )
    """Tasks of the functional phase that have no adapters in the corpus; records spell it as the configuration does."""
    start: str = ""
    steps: int
    seed: int
    model_config = ConfigDict(serialize_by_alias=True)


def num_task_gradients(config: Config) -> int:
    """Steps that a static adapter on virtual versions gets for all tasks together; EvaluationError when none are set."""
    phase = config.training.functional
    if not (number := config.evaluation.task_gradients or phase.steps * phase.tasks_per_step):
        raise EvaluationError(
            "static adapters on virtual versions get the task gradients of the functional phase, and there are none: set "
            "evaluation.task_gradients or training.functional.steps (an evaluation can also leave joint_virtual and "
            "multitask out of evaluation.arms)"
        )
    return number


def train_all(run: Run, planned: Sequence[StaticRun]) -> list[str]:
    """Do what is not done of these trainings, as tasks of the cluster; their digests in order."""

    def train(missing: dict[str, StaticRun]) -> dict[str, Finished]:
        bases = {recipe: _bases(run, work) for recipe, work in missing.items()}
        check_answers(run, [((*work.tasks, *work.auxiliary), bases[recipe]) for recipe, work in missing.items()])
        calls = [(train_run, (run.config, work, bases[recipe], recipe)) for recipe, work in missing.items()]
        done = run.on_cluster(calls, label="static", retries=run.config.corpus.retries)
        return dict(zip(missing, done, strict=True))

    recipes = [_recipe(run, work, _bases(run, work)) for work in planned]
    records = complete(run, "static", dict(zip(recipes, planned, strict=True)), train, _adapters_of)
    return [records[recipe]["digest"] for recipe in recipes]


def train_here(run: Run, planned: StaticRun, bases: Sequence[BaseRecord]) -> str:
    """The digest of a training, done in this process where it is not done, or where its adapter is damaged."""
    recipe = _recipe(run, planned, bases)

    def train(missing: dict[str, StaticRun]) -> dict[str, Finished]:
        return {recipe: _train(run, work, bases, recipe) for recipe, work in missing.items()}

    records = complete(run, "static", {recipe: planned}, train, _adapters_of, run.adapters.is_whole)
    return records[recipe]["digest"]


def train_run(config: Config, planned: StaticRun, bases: Sequence[BaseRecord], recipe: str) -> Finished:
    """Worker: train one static adapter, store it, commit its record and return it."""
    return _train(open_run(config), planned, bases, recipe)


def _train(run: Run, planned: StaticRun, bases: Sequence[BaseRecord], recipe: str) -> Finished:
    config = run.config
    layout = AdapterLayout.of(bases[-1].spec, config.lora, token_dim=config.tokens.token_dim)
    device = run.device
    source = FunctionalSource(
        [load_base(base, config.bases.dtype, device) for base in bases],
        lineages(config, planned.bases),
        [training_task(run, task_id) for task_id in planned.tasks],
        [training_task(run, task_id) for task_id in planned.auxiliary],
        [layout],
        config.training.functional.model_copy(update={"tasks_per_step": 1}),
        states_folder(),
    )
    start = initial_factors(layout, config.corpus.init_seed)
    if planned.start:
        start = run.adapters.get(planned.start).factors(layout)
    seed = derive_seed(planned.seed, planned.arm)
    factors = train_static(source, start, planned.steps, config.corpus.learning_rate, seed)
    provenance = Provenance(
        origin=planned.arm,
        base=bases[-1].id,
        base_fingerprint=bases[-1].fingerprint,
        task=planned.tasks[0] if len(planned.tasks) == 1 else "",
        seed=planned.seed,
        step=planned.steps,
        recipe=recipe,
        code_version=code_version(),
    )
    digest = run.adapters.put(build_artifact(factors, layout, provenance))
    record = {"run": planned.model_dump(mode="json"), "digest": digest}
    return run.records.commit("static", recipe, record, lambda kept: run.adapters.is_whole(kept["digest"]))


def _bases(run: Run, planned: StaticRun) -> list[BaseRecord]:
    return [run.bases[base_id] for base_id in planned.bases]


def _adapters_of(record: Finished) -> list[str]:
    return [record["digest"]]


def _recipe(run: Run, planned: StaticRun, bases: Sequence[BaseRecord]) -> str:
    config = run.config
    tasks = [run.task(task_id).fingerprint for task_id in (*planned.tasks, *planned.auxiliary)]
    return fingerprint(
        "static", RECIPE_VERSION, planned, tasks, [base.fingerprint for base in bases], lineages(config, planned.bases),
        config.bases.dtype, config.lora, config.corpus.learning_rate, config.corpus.init_seed,
        config.training.functional, config.corpus.num_examples,
    )  # fmt: skip
