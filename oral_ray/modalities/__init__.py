"""Kinds of base models, one file each. No other room asks which kind a base is.

A kind is decided once, by its config: `kind_of_config` asks the kinds of `MODALITIES` in turn. What is trained and scored
on is a `Modality` in a file of its own; a new one is one file here and one line in `MODALITIES`.

    kind_of_config(config, own).name                            # "causal"; the name stands in the base's record
    modality_of(record.spec.kind).reader(model, tokenizer, task.labels)
"""

from collections.abc import Mapping
from typing import Any

from oral_ray.errors import BaseModelError, EvaluationError
from oral_ray.modalities.causal import Causal
from oral_ray.modalities.denoising import DiffusionTransformer, Unet
from oral_ray.modalities.encoder import Encoder
from oral_ray.modalities.kind import Kind
from oral_ray.modalities.layout_only import Audio, EncoderDecoder, ImageText, Vision
from oral_ray.modalities.metrics import ACCURACY, Metric, Values
from oral_ray.modalities.protocol import Batch, Modality, TaskReader, batches

MODALITIES: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Encoder(),
        Vision(),
        Audio(),
        Causal(),
        EncoderDecoder(),
        ImageText(),
        Unet(),
        DiffusionTransformer(),
    )
}
"""Every kind by its name, from the most general to the most special: the last one that claims a config has it."""


def kind_of_config(config: Mapping[str, Any], own: Any) -> Kind | None:
    """The kind of the base that a config.json describes; None where no kind claims it.

    `own` is transformers' object for the config, None for a model of diffusers.
    """
    return next((kind for kind in reversed(MODALITIES.values()) if kind.claims(config, own)), None)


def kind_named(name: str) -> Kind:
    """A kind by the name that a record has; BaseModelError for one that no kind here has."""
    if name not in MODALITIES:
        raise BaseModelError(f"a base of kind {name!r} {layouts_only()}")
    return MODALITIES[name]


def modality_of(name: str) -> Modality:
    """The modality of a base by its kind's name; BaseModelError for a kind that is neither trained nor scored on."""
    kind = kind_named(name)
    if not isinstance(kind, Modality):
        raise BaseModelError(f"a base of kind {name!r} {layouts_only()}")
    return kind


def layouts_only() -> str:
    """What is said of a kind of base without a modality, after its name."""
    trained = ", ".join(name for name, kind in MODALITIES.items() if isinstance(kind, Modality))
    return f"has layouts, but nothing here trains or scores on it; adapters are trained and scored on {trained}"


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
    "Kind",
    "Metric",
    "Modality",
    "TaskReader",
    "Values",
    "batches",
    "kind_named",
    "kind_of_config",
    "layouts_only",
    "metric_named",
    "modality_of",
]
