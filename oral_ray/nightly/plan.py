"""Release logic as pure functions: what to generate for which base, and which candidate may be published.

items = plan_releases(bases, tasks, generator_architectures, lora, released)
decision = decide({"generated": .84, "reuse_new": .83, "base": .60}, ("generated", "reuse_new"), min_gain=0.0)
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from oral_ray.bases.catalog import BaseRecord
from oral_ray.config import LoraSettings, Record
from oral_ray.generation.refusal import refuse_base

_DUE = "not released yet: new base version, served name, generator or task"


class PlanItem(Record):
    """What is to be done for one task on one base version, and why not where nothing is."""

    base: str
    task: str
    action: Literal["generate", "skip"]
    reason: str


class GateDecision(Record):
    """The arm that may be published (None: nothing) and the reason."""

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
                items.append(PlanItem(base=base.id, task=task, action="skip", reason="already released"))
            elif refusal:
                items.append(PlanItem(base=base.id, task=task, action="skip", reason=refusal))
            else:
                items.append(
                    PlanItem(
                        base=base.id,
                        task=task,
                        action="generate",
                        reason=_DUE,
                    )
                )
    return items


def decide(scores: Mapping[str, float], candidates: Sequence[str], min_gain: float) -> GateDecision:
    """The best candidate on validation; the earlier one in a tie; nothing unless it beats `base` by more than `min_gain`.

    So a generated adapter that is worse than reuse is never published, and a task on which nothing helps gets nothing.
    """
    present = [arm for arm in candidates if not math.isnan(scores.get(arm, math.nan))]
    if not present:
        return GateDecision(arm=None, reason="no candidate could be made")
    best = max(present, key=lambda arm: scores[arm])
    shown = ", ".join(f"{arm} {scores[arm]:.4f}" for arm in (*present, "base"))
    if not scores[best] > scores["base"] + min_gain:  # so that a base without a score publishes nothing
        return GateDecision(arm=None, reason=f"no candidate beats base by more than {min_gain}: {shown}")
    return GateDecision(arm=best, reason=f"best on validation: {shown}")
