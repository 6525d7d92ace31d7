"""Condition: the one carrier of what is asked for, from the catalog to the provenance of the adapter."""

from dataclasses import dataclass

from oral_ray.bases.catalog import BaseRecord
from oral_ray.config import LoraSettings
from oral_ray.generator.condition import MAX_PROMPT_CHARS, check_prompt

__all__ = ["MAX_PROMPT_CHARS", "Condition"]


@dataclass(frozen=True, slots=True)
class Condition:
    """A prompt, a base, the kind of adapter, the seed of its noise, and a factor on its change of the weights.

    The prompt is checked here and nowhere after it: ConditionError says what is wrong with it. `scale` multiplies B A. The
    weight probes of the base are no part of it: they are read where the generator is.
    """

    prompt: str
    base: BaseRecord
    lora: LoraSettings
    seed: int = 0
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_prompt(self.prompt)
