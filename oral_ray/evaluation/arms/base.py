"""The bare base, calibrated: as it is, with the instruction before every text, and with answered examples before it.

A label's score is its log-probability minus the log of its mean probability over the validation inputs, of which no label
is read, so that a label the base always likes gains nothing.
"""

from oral_ray.evaluation.arms.registry import Arm
from oral_ray.evaluation.cells import Unadapted
from oral_ray.evaluation.context import EvaluationContext, Plan


def plan_base(evaluation: EvaluationContext) -> Plan:
    """The base without an adapter."""
    return evaluation.without_adapter(Unadapted.BASE)


ARMS = (
    Arm(
        name="base",
        description="The base without an adapter, calibrated.",
        order=10,
        colour="#999999",
        plan=plan_base,
    ),
    Arm(
        name="prompted",
        description="The base without an adapter, with the task's instruction before every text.",
        order=20,
        colour="#8c8c8c",
        plan=plan_base,
        frame="instructed/",
    ),
    Arm(
        name="few_shot",
        description="The base without an adapter, with the instruction and answered training examples before every text.",
        order=30,
        colour="#666666",
        plan=plan_base,
        frame="few-shot/",
    ),
)
