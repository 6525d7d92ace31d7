"""Kinds of base models, one file each behind one protocol. No other room asks which kind a base is.

A new kind is one file here, with a class that has the protocol of `Modality`, and one line in `MODALITIES`.
"""

from oral_ray.errors import BaseModelError, EvaluationError
from oral_ray.modalities.causal import Causal
from oral_ray.modalities.encoder import Encoder
from oral_ray.modalities.metrics import ACCURACY, Metric, Values
from oral_ray.modalities.protocol import Batch, Modality, TaskReader, batches

MODALITIES: dict[str, Modality] = {modality.name: modality for modality in (Encoder(), Causal())}


def modality_of(name: str) -> Modality:
    """The modality of a base by its name; BaseModelError for one that has layouts but neither training nor scoring."""
    if name not in MODALITIES:
        raise BaseModelError(
            f"a base of kind {name!r} has layouts, but nothing here trains or scores on it; "
            f"adapters are trained and scored on {', '.join(MODALITIES)}"
        )
    return MODALITIES[name]


def metric_named(name: str) -> Metric:
    """The metric of a name, among those of every modality; EvaluationError where there is none, or there are two."""
    known = {metric for modality in MODALITIES.values() for metric in modality.metrics}
    found = [metric for metric in known if metric.name == name]
    if not found:
        raise EvaluationError(
            f"no kind of base has a metric {name!r}; there are {', '.join(sorted(metric.name for metric in known))}"
        )
    if len(found) > 1:
        raise EvaluationError(f"two kinds of base have a metric {name!r}, and they differ; rename one of them")
    return found[0]


__all__ = [
    "ACCURACY",
    "MODALITIES",
    "Batch",
    "Metric",
    "Modality",
    "TaskReader",
    "Values",
    "batches",
    "metric_named",
    "modality_of",
]
