"""An adapter of an earlier version, used as it is: what costs nothing when a new base lands."""

from oral_ray.evaluation.arms.registry import Arm
from oral_ray.evaluation.context import EvaluationContext, Plan
from oral_ray.pipeline import corpus


def plan_reuse_old(evaluation: EvaluationContext) -> Plan:
    """The adapter of the oldest seen version of the architecture."""
    return evaluation.trainings(lambda base_id: evaluation.alike(base_id)[:1])


def plan_reuse_new(evaluation: EvaluationContext) -> Plan:
    """The adapter of the newest seen version that the base comes from."""
    return evaluation.trainings(lambda base_id: [corpus.newest_seen(evaluation.config, base_id)])


ARMS = (
    Arm(
        name="reuse_old",
        description="The adapter that was trained on the oldest seen version.",
        order=70,
        colour="#56b4e9",
        plan=plan_reuse_old,
    ),
    Arm(
        name="reuse_new",
        description="The adapter that was trained on the newest seen version that this base comes from.",
        order=80,
        colour="#0072b2",
        plan=plan_reuse_new,
        is_reference=True,
    ),
)
