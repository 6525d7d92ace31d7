"""What a kind of base is as far as its config and its checkpoints go, and what transformers' own config objects say.

A `Kind` says which configs are of it, which class its modules are read off (the layout), and which class its checkpoints
are loaded by. A kind that is also trained and scored on is a `Modality` (`protocol`); the others are in `layout_only`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from oral_ray.modalities.metrics import Metric


class Kind(ABC):
    """A kind of base model.

    `name` stands in the record of every base of this kind and is part of its architecture's digest. `noun` ends the
    kind's name in the sentence that describes a base to the generator. `auto_class` is the class of transformers that
    checkpoints are loaded by and compared with; empty where none is loaded.
    """

    name: str
    noun: ClassVar[str] = "model"
    auto_class: ClassVar[str] = ""
    metrics: ClassVar[tuple[Metric, ...]] = ()
    """Every metric that a reader of this kind may have: tables find a metric here by its name."""
    heads_may_lie: ClassVar[bool] = False
    """Whether a checkpoint may hold a head that the class of this kind does not have."""
    of_pipelines: ClassVar[bool] = False
    """Whether a base of this kind is a diffusers pipeline, a folder of several components."""
    embeds_text: ClassVar[bool] = False
    """Whether a text has an embedding (`modalities.encoder.embed`)."""
    writes_text: ClassVar[bool] = False
    """Whether the next token of a text has a probability, so that a text has a perplexity."""

    @abstractmethod
    def claims(self, config: Mapping[str, Any], own: Any) -> bool:
        """Whether a base is of this kind. `config` is its config.json; `own` transformers' object for it, None for a model
        of diffusers. What its weights were saved from (a masked language model, a classifier) does not count."""

    def layout_class(self, config: Mapping[str, Any], own: Any) -> str:
        """The class of transformers whose modules are the layout of a base of this kind."""
        return self.auto_class

    def build_options(self, own: Any, tensors: Iterable[str]) -> dict[str, Any]:
        """What the class is told beside the config, for a checkpoint with tensors of these names."""
        return {}


def loads(auto_class: str, own: Any) -> bool:
    """Whether a class of transformers, such as AutoModelForCausalLM, has a model for a config object."""
    import transformers

    return type(own) in getattr(transformers, auto_class)._model_mapping


def reads_images_with_text(own: Any) -> bool:
    """Whether a config is of a model that reads images beside text, or compares the two."""
    return loads("AutoModelForImageTextToText", own) or hasattr(own, "vision_config")


def main_input(own: Any) -> str:
    """What a model's own class reads first: `input_ids`, `pixel_values`, ...; empty where AutoModel has none."""
    model_class = model_class_of("AutoModel", own)
    return "" if model_class is None else model_class.main_input_name


def model_class_of(auto_class: str, own: Any) -> Any:
    """The class that one of transformers' auto classes takes for a config object; None where it has none."""
    import transformers
    from transformers.models.auto.auto_factory import _get_model_class

    return _get_model_class(own, getattr(transformers, auto_class)._model_mapping) if loads(auto_class, own) else None
