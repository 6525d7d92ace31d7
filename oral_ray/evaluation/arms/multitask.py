"""One adapter for all tasks of the functional phase, from scratch, with all its task gradients on virtual versions.

`multitask_instructed` reads the instruction before every text, which is how a model is asked without a generator.
"""

from collections.abc import Callable, Sequence

from oral_ray.config import Config
from oral_ray.evaluation.arms.registry import Arm
from oral_ray.evaluation.context import EvaluationContext, Plan
from oral_ray.pipeline.material import auxiliary_tasks
from oral_ray.pipeline.static import StaticRun, num_task_gradients

INSTRUCTED = "instructed/"


def multitask_run(
    config: Config, seen: Sequence[str], auxiliary: Sequence[str], instructed: bool, seed: int
) -> StaticRun:
    """For all tasks together: as many steps as there are task gradients."""
    frame = INSTRUCTED if instructed else ""
    return StaticRun(
        arm="multitask_instructed" if instructed else "multitask",
        bases=tuple(seen),
        tasks=tuple(frame + task_id for task_id in config.tasks.ids),
        auxiliary=tuple(frame + task_id for task_id in auxiliary),
        steps=num_task_gradients(config),
        seed=seed,
    )


def _planner(instructed: bool) -> Callable[[EvaluationContext], Plan]:
    def plan(evaluation: EvaluationContext) -> Plan:
        config, plan = evaluation.config, {}
        for base_id in evaluation.base_ids:
            seen = evaluation.alike(base_id)
            run = multitask_run(config, seen, auxiliary_tasks(evaluation.run), instructed, config.corpus.seeds[0])
            plan |= {(base_id, task_id, 0): run for task_id in evaluation.task_ids}
        return plan

    return plan


ARMS = (
    Arm(
        name="multitask",
        description="One adapter for all tasks, with all the task gradients that the generator gets.",
        order=130,
        colour="#aa4499",
        plan=_planner(instructed=False),
    ),
    Arm(
        name="multitask_instructed",
        description="One adapter for all tasks that reads the task's instruction before every text.",
        order=140,
        colour="#661166",
        plan=_planner(instructed=True),
        frame=INSTRUCTED,
    ),
)
