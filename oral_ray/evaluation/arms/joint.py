"""One adapter per task, trained over all seen versions of the architecture at once, so that it travels to later ones."""

from oral_ray.evaluation.arms.registry import Arm
from oral_ray.evaluation.context import EvaluationContext, Plan


def plan_joint(evaluation: EvaluationContext) -> Plan:
    """A training on all seen versions together."""
    return evaluation.trainings(evaluation.alike)


ARMS = (
    Arm(
        name="joint",
        description="One adapter per task, trained over all seen versions together.",
        order=90,
        colour="#009e73",
        plan=plan_joint,
        is_reference=True,
    ),
)
