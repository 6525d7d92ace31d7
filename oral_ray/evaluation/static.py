"""Static adapters: trained on mixes of base versions, or on one, from scratch or from another adapter.

Those on virtual versions get as many task gradients as the generator gets: those of the functional phase, or
`evaluation.task_gradients` where that is set. arms/{joint_virtual,multitask,refined}.py say who trains what.
"""

from collections.abc import Sequence
from typing import Any

from oral_ray.adapters.artifact import Provenance, build_artifact
from oral_ray.adapters.layout import AdapterLayout
from oral_ray.adapters.lora import initial_factors
from oral_ray.bases.catalog import BaseRecord
from oral_ray.bases.loading import load_base
from oral_ray.bases.states import states_folder
from oral_ray.cluster import Call, device_of, run_tasks
from oral_ray.config import Config, Record, derive_seed, fingerprint
from oral_ray.errors import EvaluationError
from oral_ray.generator.functional import FunctionalSource, train_static
from oral_ray.objects import Objects, open_objects
from oral_ray.pipeline import corpus
from oral_ray.pipeline.own_tasks import check_answers, task_of
from oral_ray.store.adapters import AdapterStore
from oral_ray.store.records import Records
from oral_ray.version import code_version

RECIPE_VERSION = 2


class StaticRun(Record):
    """One training on mixes of `bases`: its tasks, the adapter it starts from (empty: a fresh one), its length."""

    arm: str
    bases: tuple[str, ...]
    tasks: tuple[str, ...]
    further: tuple[str, ...] = ()
    start: str = ""
    steps: int
    seed: int


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


def train_all(config: Config, runs: Sequence[StaticRun], found: dict[str, BaseRecord]) -> list[str]:
    """Do what is not done of these runs, as Ray tasks; their digests in order."""
    recipes = [_recipe(config, run, [found[base_id] for base_id in run.bases]) for run in runs]
    objects = open_objects(config.store)
    kept = {recipe: _kept(objects, recipe) for recipe in recipes}
    left = {recipe: run for recipe, run in zip(recipes, runs, strict=True) if kept[recipe] is None}
    asked = [((*run.tasks, *run.further), [found[b] for b in run.bases]) for run in left.values()]
    check_answers(config, [(task_id, bases) for task_ids, bases in asked for task_id in task_ids])
    calls: list[Call] = [
        (train_run, (config, run, [found[b] for b in run.bases], recipe)) for recipe, run in left.items()
    ]
    done = run_tasks(
        calls, config.cluster, determinism=config.determinism, retries=config.corpus.retries, label="static"
    )
    kept |= dict(zip(left, done, strict=True))
    return [str((kept[recipe] or {})["digest"]) for recipe in recipes]


def train_here(config: Config, run: StaticRun, bases: Sequence[BaseRecord]) -> str:
    """The digest of a run, trained in this process where it is not done."""
    recipe = _recipe(config, run, bases)
    objects = open_objects(config.store)
    kept = _kept(objects, recipe)
    if kept is None or not AdapterStore(objects).is_whole(kept["digest"]):
        kept = train_run(config, run, bases, recipe)
    return str(kept["digest"])


def train_run(config: Config, run: StaticRun, bases: Sequence[BaseRecord], recipe: str) -> dict[str, str]:
    """Worker: train one static adapter, store it, commit its record."""
    objects = open_objects(config.store)
    store = AdapterStore(objects)
    layout = AdapterLayout.of(bases[-1].spec, config.lora, token_dim=config.tokens.token_dim)
    device = device_of(config.cluster.gpus_per_task)
    source = FunctionalSource(
        [load_base(base, config.bases.dtype, device) for base in bases],
        corpus.lines(config, run.bases),
        [corpus.training_task(config, task_id) for task_id in run.tasks],
        [corpus.training_task(config, task_id) for task_id in run.further],
        [layout],
        config.training.functional.model_copy(update={"tasks_per_step": 1}),
        states_folder(),
    )
    start = store.get(run.start).factors(layout) if run.start else initial_factors(layout, config.corpus.init_seed)
    factors = train_static(source, start, run.steps, config.corpus.learning_rate, derive_seed(run.seed, run.arm))
    provenance = Provenance(
        origin=run.arm,
        base=bases[-1].id,
        base_fingerprint=bases[-1].fingerprint,
        task=run.tasks[0] if len(run.tasks) == 1 else "",
        seed=run.seed,
        step=run.steps,
        recipe=recipe,
        code_version=code_version(),
    )
    digest = store.put(build_artifact(factors, layout, provenance))
    record = {"run": run.model_dump(mode="json"), "digest": digest}
    return Records(objects).commit("static", recipe, record, lambda kept: store.is_whole(kept["digest"]))


def _kept(objects: Objects, recipe: str) -> dict[str, Any] | None:
    """The record of a finished run whose adapter is still there."""
    record = Records(objects).get("static", recipe)
    return record if record and AdapterStore(objects).has(str(record["digest"])) else None


def _recipe(config: Config, run: StaticRun, bases: Sequence[BaseRecord]) -> str:
    tasks = [task_of(config, task_id).fingerprint for task_id in (*run.tasks, *run.further)]
    return fingerprint(
        "static", RECIPE_VERSION, run, tasks, [base.fingerprint for base in bases], corpus.lines(config, run.bases),
        config.bases.dtype, config.lora, config.corpus.learning_rate, config.corpus.init_seed,
        config.training.functional, config.corpus.num_examples,
    )  # fmt: skip
