"""Of all adapters of an arm, at every scale, the best on a few validation examples: one privilege for all arms.

A team may well look at 64 labelled examples; where one arm may, every arm that it is compared with may too.
"""

from collections.abc import Callable

from oral_ray.adapters.artifact import build_artifact
from oral_ray.adapters.layout import AdapterLayout
from oral_ray.evaluation.arms.registry import Arm
from oral_ray.evaluation.choice import Choice
from oral_ray.evaluation.context import EvaluationContext, Plan
from oral_ray.pipeline.run import Run


def scaled(run: Run, digest: str, layout: AdapterLayout, scale: float) -> str:
    """The digest of the adapter with its change of the weights multiplied by `scale`."""
    if scale == 1.0:
        return digest
    artifact = run.adapters.get(digest)
    factors = {name: (a, scale * b) for name, (a, b) in artifact.factors(layout).items()}
    made = artifact.provenance
    provenance = made.model_copy(update={"scale": scale * made.scale})
    return run.adapters.put(build_artifact(factors, layout, provenance))


def _planner(source: str) -> Callable[[EvaluationContext], Plan]:
    def plan(evaluation: EvaluationContext) -> Plan:
        config = evaluation.config
        candidates: dict[tuple[str, str], list[str]] = {}
        for (base_id, task_id, _), digest in sorted(evaluation.made_by(source).items()):
            layout = AdapterLayout.of(evaluation.run.bases[base_id].spec, config.lora, config.tokens.token_dim)
            for scale in config.evaluation.strengths:
                if (digest, scale) not in evaluation.scaled:
                    evaluation.scaled[digest, scale] = scaled(evaluation.run, digest, layout, scale)
                candidates.setdefault((base_id, task_id), []).append(evaluation.scaled[digest, scale])
        return {
            (base_id, task_id, 0): Choice(base=base_id, task=task_id, candidates=tuple(digests))
            for (base_id, task_id), digests in candidates.items()
        }

    return plan


def _best(name: str, source: str, order: int, colour: str, against: tuple[str, ...] = ()) -> Arm:
    return Arm(
        name=name,
        description=f"Of all adapters of `{source}`, at every strength, the best on a few validation examples.",
        order=order,
        colour=colour,
        plan=_planner(source),
        needs=(source,),
        against=against,
    )


ARMS = (
    _best("best_trained", "trained", order=230, colour="#262626"),
    _best("best_reuse_new", "reuse_new", order=240, colour="#3399cc"),
    _best("best_joint", "joint", order=250, colour="#66c2a5"),
    _best("best_joint_virtual", "joint_virtual", order=260, colour="#33b38f"),
    _best(
        "best_generated",
        "generated",
        order=270,
        colour="#ff8533",
        against=("best_trained", "best_reuse_new", "best_joint", "best_joint_virtual"),
    ),
)
