"""The generator's network as a plain regression: one deterministic step, what diffusion has to be better than."""

from oral_ray.evaluation.arms.registry import Arm
from oral_ray.evaluation.context import EvaluationContext, Plan
from oral_ray.pipeline import train
from oral_ray.pipeline.run import Call


def prepare_regression(evaluation: EvaluationContext) -> list[Call]:
    """Train the control's generator, where it is not there, in the time of the trainings of the corpus."""
    control, shards = train.regression_run(evaluation.run), evaluation.manifest.fingerprint
    return [] if train.is_trained(control, shards) else [(train.train_in_task, (control.config, shards))]


def plan_regression(evaluation: EvaluationContext) -> Plan:
    """What it makes of the default wording of every task; there is nothing to sample, hence one seed."""
    recipe = train.recipe_of(train.regression_run(evaluation.run), evaluation.manifest.fingerprint)
    return {
        (base_id, task_id, 0): evaluation.request(
            "regression", base_id, task_id, evaluation.task(task_id).prompt, 0, recipe
        )
        for task_id in evaluation.task_ids
        for base_id in evaluation.base_ids
    }


ARMS = (
    Arm(
        name="regression",
        description="Made by the same network, trained as a regression with one deterministic step.",
        order=150,
        colour="#e69f00",
        plan=plan_regression,
        prepare=prepare_regression,
        measures_distance=True,
    ),
)
