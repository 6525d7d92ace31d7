"""What the generator makes of a prompt, and two controls of the prompt: a wording never trained on, and a wrong one."""

from collections.abc import Callable

from oral_ray.evaluation.arms.registry import Arm
from oral_ray.evaluation.context import EvaluationContext, Plan
from oral_ray.tasks import Task

GENERATED, HELD_OUT, WRONG_PROMPT = "generated", "held_out", "wrong_prompt"


def held_out_prompt(task: Task) -> str:
    """The first wording of a task that was never trained on, the default one where it has none."""
    return task.held_out_prompts[0] if task.held_out_prompts else task.prompt


def plan_generated(evaluation: EvaluationContext) -> Plan:
    """Every sample of every generator from the default wording."""
    return _samples(evaluation, GENERATED, lambda task_id: evaluation.task(task_id).prompt)


def plan_held_out(evaluation: EvaluationContext) -> Plan:
    """Every sample from a wording that was never trained on."""
    return _samples(evaluation, HELD_OUT, lambda task_id: held_out_prompt(evaluation.task(task_id)))


def plan_wrong_prompt(evaluation: EvaluationContext) -> Plan:
    """Every sample from the prompt of the next task; nothing where there is no other task whose prompt would be wrong."""
    if len(evaluation.task_ids) < 2:
        return {}
    others = dict(zip(evaluation.task_ids, evaluation.task_ids[1:] + evaluation.task_ids[:1], strict=True))
    return _samples(evaluation, WRONG_PROMPT, lambda task_id: evaluation.task(others[task_id]).prompt)


def _samples(evaluation: EvaluationContext, arm: str, prompt_of: Callable[[str], str]) -> Plan:
    return {
        (base_id, task_id, sample.number): evaluation.request(
            arm, base_id, task_id, prompt_of(task_id), sample.seed, sample.recipe
        )
        for task_id in evaluation.task_ids
        for base_id in evaluation.base_ids
        for sample in evaluation.samples()
    }


ARMS = (
    Arm(
        name=GENERATED,
        description="Generated from the task's prompt.",
        order=160,
        colour="#d55e00",
        plan=plan_generated,
        for_its_base=True,
        measures_distance=True,
        against=(
            "trained", "trained_long", "reuse_old", "reuse_new", "joint", "joint_virtual", "nearest", "regression",
            "held_out", "wrong_prompt",
        ),
    ),
    Arm(
        name=HELD_OUT,
        description="Generated from a wording that the generator was never trained on.",
        order=170,
        colour="#8b3a00",
        plan=plan_held_out,
        for_its_base=True,
        measures_distance=True,
    ),
    Arm(
        name=WRONG_PROMPT,
        description="Generated from another task's prompt.",
        order=180,
        colour="#f0e442",
        plan=plan_wrong_prompt,
        for_its_base=True,
    ),
)  # fmt: skip
