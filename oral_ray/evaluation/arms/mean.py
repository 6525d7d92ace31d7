"""The mean adapter of the corpus: what a generator is worth that learnt nothing about tasks."""

from oral_ray.adapters.artifact import Provenance, build_artifact
from oral_ray.adapters.layout import AdapterLayout
from oral_ray.adapters.tokens import detokenize
from oral_ray.evaluation.arms.registry import Arm
from oral_ray.evaluation.context import EvaluationContext, Plan
from oral_ray.version import code_version


def plan_mean(evaluation: EvaluationContext) -> Plan:
    """The mean of the base's layout for every task; nothing for a base whose layout is not in the corpus."""
    config = evaluation.config
    stats = evaluation.run.token_stats(evaluation.manifest)
    plan: Plan = {}
    for base_id in evaluation.base_ids:
        record = evaluation.run.bases[base_id]
        layout = AdapterLayout.of(record.spec, config.lora, config.tokens.token_dim)
        if layout.digest not in stats.means:
            continue
        provenance = Provenance(
            origin="mean", base=base_id, base_fingerprint=record.fingerprint, code_version=code_version()
        )
        digest = evaluation.run.adapters.put(
            build_artifact(detokenize(stats.means[layout.digest], layout), layout, provenance)
        )
        plan |= {(base_id, task_id, 0): digest for task_id in evaluation.task_ids}
    return plan


ARMS = (
    Arm(
        name="mean",
        description="The mean adapter of the corpus, the same for every task.",
        order=110,
        colour="#b8a07a",
        plan=plan_mean,
    ),
)
