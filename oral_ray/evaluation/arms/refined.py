"""A few steps on the very base and task (`evaluation.refine_steps`), from scratch or from another arm's adapter."""

from collections.abc import Callable

from oral_ray.config import Config
from oral_ray.evaluation.arms.registry import Arm
from oral_ray.evaluation.context import EvaluationContext, Plan
from oral_ray.pipeline.static import StaticRun


def refined_run(config: Config, arm: str, base_id: str, task_id: str, start: str, seed: int) -> StaticRun:
    """A few steps on the base itself, from another adapter (empty: a fresh one)."""
    steps = config.evaluation.refine_steps
    return StaticRun(arm=arm, bases=(base_id,), tasks=(task_id,), start=start, steps=steps, seed=seed)


def _planner(arm: str, source: str | None) -> Callable[[EvaluationContext], Plan]:
    """From every adapter of the source; without one from a fresh adapter for every seed of the corpus."""

    def plan(evaluation: EvaluationContext) -> Plan:
        starts = evaluation.made_by(source) if source else dict.fromkeys(_places(evaluation), "")
        return {
            (base_id, task_id, seed): refined_run(evaluation.config, arm, base_id, task_id, start, seed)
            for (base_id, task_id, seed), start in starts.items()
        }

    return plan


def _places(evaluation: EvaluationContext) -> list[tuple[str, str, int]]:
    return [
        (base_id, task_id, seed)
        for base_id in evaluation.base_ids
        for task_id in evaluation.task_ids
        for seed in evaluation.config.corpus.seeds
    ]


def _refined(name: str, source: str | None, order: int, colour: str, against: tuple[str, ...] = ()) -> Arm:
    return Arm(
        name=name,
        description=f"A few steps on this base, {f'from the adapter of `{source}`' if source else 'from scratch'}.",
        order=order,
        colour=colour,
        plan=_planner(name, source),
        needs=(source,) if source else (),
        for_its_base=True,
        against=against,
    )


ARMS = (
    _refined("refined_scratch", None, order=190, colour="#4d4d4d"),
    _refined("refined_reuse_new", "reuse_new", order=200, colour="#004c75"),
    _refined("refined_joint", "joint", order=210, colour="#005c43"),
    _refined(
        "refined_generated",
        "generated",
        order=220,
        colour="#b34700",
        against=("trained_long", "joint", "refined_scratch", "refined_reuse_new", "refined_joint"),
    ),
)
