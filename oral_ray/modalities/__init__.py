"""Kinds of base models, one file each behind one protocol. No other room asks which kind a base is.

A new kind is one file here, with a class that has the protocol of `Modality`, and one line in `MODALITIES`.
"""

from oral_ray.errors import BaseModelError
from oral_ray.modalities.causal import Causal
from oral_ray.modalities.encoder import Encoder
from oral_ray.modalities.protocol import ACCURACY, EXACT_MATCH, Batch, Metric, Modality, TaskReader, batches

MODALITIES: dict[str, Modality] = {modality.name: modality for modality in (Encoder(), Causal())}


def modality_of(name: str) -> Modality:
    """The modality of a base by its name; BaseModelError for one that has layouts but neither training nor scoring."""
    if name not in MODALITIES:
        raise BaseModelError(
            f"a base of kind {name!r} has layouts, but nothing here trains or scores on it; "
            f"adapters are trained and scored on {', '.join(MODALITIES)}"
        )
    return MODALITIES[name]


__all__ = [
    "ACCURACY",
    "EXACT_MATCH",
    "MODALITIES",
    "Batch",
    "Metric",
    "Modality",
    "TaskReader",
    "batches",
    "modality_of",
]
