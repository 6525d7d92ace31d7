"""Retrieval in place of generation: the adapter of the training task whose prompt is nearest to a new wording."""

from collections.abc import Sequence

from oral_ray.config import fingerprint
from oral_ray.evaluation.arms.generated import held_out_prompt
from oral_ray.evaluation.arms.registry import Arm
from oral_ray.evaluation.context import EvaluationContext, Plan
from oral_ray.generation.batch import nearest_prompts
from oral_ray.pipeline import corpus
from oral_ray.pipeline.material import auxiliary_tasks
from oral_ray.pipeline.work import Finished, complete

RECIPE_VERSION = 1


def plan_nearest(evaluation: EvaluationContext) -> Plan:
    """The newest seen version's adapter of the training task whose prompt is nearest to a wording never trained on."""
    config = evaluation.config
    known = [*config.tasks.ids, *auxiliary_tasks(evaluation.run)]
    prompts = [evaluation.task(task_id).prompt for task_id in known]
    asked = [held_out_prompt(evaluation.task(task_id)) for task_id in evaluation.task_ids]
    plan: Plan = {}
    for task_id, index in zip(evaluation.task_ids, _nearest(evaluation, prompts, asked), strict=True):
        nearest = known[index]
        for seed in config.corpus.seeds:
            for base_id in evaluation.base_ids:
                newest = corpus.newest_seen(config, base_id)
                plan[base_id, task_id, seed] = evaluation.corpus_run(nearest, [newest], seed)
    return plan


def _nearest(evaluation: EvaluationContext, known: Sequence[str], asked: Sequence[str]) -> list[int]:
    """The index of the known prompt that is nearest to each, put on record: loading an encoder takes seconds."""
    run = evaluation.run
    encoders = {run.generator_card(recipe).spec.text_encoder_fingerprint for recipe in evaluation.generators.values()}
    recipe = fingerprint("nearest", RECIPE_VERSION, sorted(encoders), run.config.condition, known, asked)

    def embed(_: object) -> dict[str, Finished]:
        found = nearest_prompts(known, asked, run.config)
        return {recipe: run.records.commit("nearest", recipe, {"nearest": found})}

    return complete(run, "nearest", {recipe: asked}, embed)[recipe]["nearest"]


ARMS = (
    Arm(
        name="nearest",
        description="The adapter of the training task whose prompt is nearest to a wording that was never trained on.",
        order=120,
        colour="#cc79a7",
        plan=plan_nearest,
    ),
)
