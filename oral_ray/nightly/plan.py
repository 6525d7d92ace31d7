"""Release logic as pure functions: what to generate for which base, and which candidate may be published.

items = plan_releases(bases, tasks, generator_architectures, lora, released)
scores = {"generated": 0.84, "reuse_new": 0.83, "base": 0.60}
decision = decide(scores, ("generated", "reuse_new"), min_gain=0.0, metric=ACCURACY)
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from oral_ray.bases.catalog import BaseRecord
from oral_ray.config import BaseId, LoraSettings, Record
from oral_ray.generation.refusal import refuse_base

if TYPE_CHECKING:  # plans are made without torch, which an evaluation needs
    from oral_ray.modalities import Metric

_DUE = "not released yet: new base version, served name, generator or task"


class PlanItem(Record):
    """What is to be done for one task on one base version, and why not where nothing is."""

    base_id: BaseId
    task: str
    action: Literal["generate", "skip"]
    reason: str


class GateDecision(Record):
    """The candidate that may be published by its name (None: nothing) and the reason."""

    arm: str | None
    reason: str


def plan_releases(
    bases: Sequence[BaseRecord], tasks: Sequence[str], architectures: Collection[str], lora: LoraSettings,
    released: Collection[tuple[str, str, str]],
) -> list[PlanItem]:  # fmt: skip
    """One item a (base, task). `released` holds (base id, base fingerprint, task) of what is published already."""
    refusals: dict[str, str] = {}  # one layout an architecture, not one a base
    items = []
    for base in bases:
        if base.spec.digest not in refusals:
            refusals[base.spec.digest] = refuse_base(base, architectures, lora)
        refusal = refusals[base.spec.digest]
        for task in tasks:
            if (base.id, base.fingerprint, task) in released:
                items.append(PlanItem(base_id=base.id, task=task, action="skip", reason="already released"))
            elif refusal:
                items.append(PlanItem(base_id=base.id, task=task, action="skip", reason=refusal))
            else:
                items.append(
                    PlanItem(
                        base_id=base.id,
                        task=task,
                        action="generate",
                        reason=_DUE,
                    )
                )
    return items


def decide(scores: Mapping[str, float], candidates: Sequence[str], min_gain: float, metric: "Metric") -> GateDecision:
    """The best candidate on validation by a metric; the earlier one in a tie; nothing unless it is better than `base` by
    more than `min_gain`.

    So a generated adapter that is worse than reuse is never published, and a task on which nothing helps gets nothing.
    `scores` are figures by candidate name, and that of `base`; a candidate without a number is passed over.
    """
    present = {name: scores[name] for name in candidates if not math.isnan(scores.get(name, math.nan))}
    best = metric.best(present)
    if best is None:
        return GateDecision(arm=None, reason="no candidate could be made")
    shown = ", ".join(f"{name} {scores[name]:.4f}" for name in (*present, "base"))
    by = "" if metric.counts_right_answers else f" in {metric.label}"
    if not metric.better(scores[best], scores["base"], by=min_gain):  # so that a base without a score publishes nothing
        return GateDecision(arm=None, reason=f"no candidate beats base by more than {min_gain}{by}: {shown}")
    return GateDecision(arm=best, reason=f"best on validation{by}: {shown}")
