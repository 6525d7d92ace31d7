"""Retrieval in place of generation: the adapter of the training task whose prompt is nearest to a new wording."""

from oral_ray.evaluation.arms.generated import held_out_prompt
from oral_ray.evaluation.arms.registry import Arm
from oral_ray.evaluation.context import EvaluationContext, Plan
from oral_ray.generator.condition import ConditionEncoder
from oral_ray.pipeline import corpus
from oral_ray.pipeline.material import further_tasks


def plan_nearest(evaluation: EvaluationContext) -> Plan:
    """The newest seen version's adapter of the training task whose prompt is nearest to a wording never trained on."""
    config = evaluation.config
    encoder = ConditionEncoder(config.condition)
    known = [*config.tasks.ids, *further_tasks(config)]
    prompts = encoder.encode_prompts([evaluation.task(task_id).prompt for task_id in known])
    plan: Plan = {}
    for task_id in evaluation.task_ids:
        [asked] = encoder.encode_prompts([held_out_prompt(evaluation.task(task_id))])
        nearest = known[int((prompts @ asked).argmax())]
        for seed in config.corpus.seeds:
            for base_id in evaluation.base_ids:
                newest = corpus.newest_seen(config, base_id)
                plan[base_id, task_id, seed] = evaluation.corpus_run(nearest, [newest], seed)
    return plan


ARMS = (
    Arm(
        name="nearest",
        description="The adapter of the training task whose prompt is nearest to a wording that was never trained on.",
        order=120,
        colour="#cc79a7",
        plan=plan_nearest,
    ),
)
