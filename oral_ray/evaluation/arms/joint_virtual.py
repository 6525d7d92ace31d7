"""The `joint` adapter of a task, trained on with what the generator gets: virtual versions, as many task gradients.

A static adapter, so what the generator has over it is not the virtual versions.
"""

from collections.abc import Sequence

from oral_ray.config import Config
from oral_ray.evaluation.arms.registry import Arm
from oral_ray.evaluation.context import EvaluationContext, Plan
from oral_ray.pipeline.static import StaticRun, num_task_gradients


def joint_virtual_run(config: Config, task_id: str, seen: Sequence[str], joint: str, seed: int) -> StaticRun:
    """From the `joint` adapter of a task (its digest): the task's share of the task gradients, as a task of the corpus."""
    of_corpus = 1.0 - config.training.functional.further_frac if config.tasks.further else 1.0
    steps = max(1, round(num_task_gradients(config) * of_corpus / len(config.tasks.ids)))
    return StaticRun(arm="joint_virtual", bases=tuple(seen), tasks=(task_id,), start=joint, steps=steps, seed=seed)


def plan_joint_virtual(evaluation: EvaluationContext) -> Plan:
    """A training on mixes of all seen versions for every `joint` adapter."""
    return {
        (base_id, task_id, seed): joint_virtual_run(evaluation.config, task_id, evaluation.alike(base_id), joint, seed)
        for (base_id, task_id, seed), joint in evaluation.made_by("joint").items()
    }


ARMS = (
    Arm(
        name="joint_virtual",
        description="The joint adapter, trained on with as many task gradients on virtual versions as the generator gets.",
        order=100,
        colour="#00684a",
        plan=plan_joint_virtual,
        needs=("joint",),
        shows_needs=False,
    ),
)
