"""The most frequent answer, whatever the text: what a score has to be above before it means anything."""

from oral_ray.evaluation.arms.registry import Arm
from oral_ray.evaluation.cells import Unadapted
from oral_ray.evaluation.context import EvaluationContext, Plan


def plan_majority(evaluation: EvaluationContext) -> Plan:
    """No base and no adapter: the answer is known from the training examples."""
    return evaluation.without_adapter(Unadapted.MAJORITY)


ARMS = (
    Arm(
        name="majority",
        description="Always the most frequent answer of the training examples.",
        order=40,
        colour="#cccccc",
        plan=plan_majority,
    ),
)
