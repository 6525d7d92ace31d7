"""The adapter that was trained on this very base: the ordinary way, which needs the task's data for every new base.

`trained_long` has as many steps on it as `joint` has over all seen versions: a joint training with copies of itself.
"""

from oral_ray.evaluation.arms.registry import Arm
from oral_ray.evaluation.context import EvaluationContext, Plan


def plan_trained(evaluation: EvaluationContext) -> Plan:
    """A training on the base alone."""
    return evaluation.trainings(lambda base_id: [base_id])


def plan_trained_long(evaluation: EvaluationContext) -> Plan:
    """A training on the base in place of each seen version."""
    return evaluation.trainings(lambda base_id: [base_id] * len(evaluation.alike(base_id)))


ARMS = (
    Arm(
        name="trained",
        description="Trained on this base, with the steps of the corpus.",
        order=50,
        colour="#000000",
        plan=plan_trained,
        for_its_base=True,
        is_reference=True,
        measures_distance=True,
    ),
    Arm(
        name="trained_long",
        description="Trained on this base, with as many steps as the joint adapter has over all seen versions.",
        order=60,
        colour="#5a5a5a",
        plan=plan_trained_long,
        for_its_base=True,
        is_reference=True,
    ),
)
