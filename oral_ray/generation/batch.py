"""Many adapters from stored generators, each of a condition; what is alike is made once.

for places, adapter in generate_samples(calls, generator_of, probes_of, config, device):
    digest = store.put(adapter)         # of all calls at these places
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from oral_ray.adapters.sampled import SampledAdapter
from oral_ray.config import Config, LoraSettings
from oral_ray.generation.condition import Condition
from oral_ray.generation.factory import AdapterFactory, ProbesOf, effective_sampling
from oral_ray.generator.condition import ConditionEncoder
from oral_ray.generator.model import Generator


class GeneratorCall(NamedTuple):
    """An adapter of a condition, from the generator of a recipe in `num_steps` sampling steps."""

    recipe: str
    num_steps: int
    condition: Condition


def generate_samples(
    calls: Sequence[GeneratorCall], generator_of: Callable[[str], Generator], probes_of: ProbesOf, config: Config,
    device: str,
) -> Iterator[tuple[list[int], SampledAdapter]]:  # fmt: skip
    """Every adapter with the places of the calls that want it, those of a generator together.

    `generator_of` loads a generator by its recipe, `probes_of` the weight probes of a base.
    """
    encoder = ConditionEncoder(config.condition)
    for recipe, num_steps in sorted({(call.recipe, call.num_steps) for call in calls}):
        sampling = effective_sampling(config.sampling.model_copy(update={"num_steps": num_steps}), config.determinism)
        factory = AdapterFactory(generator_of(recipe), encoder, sampling, probes_of, device)
        places = [i for i, call in enumerate(calls) if (call.recipe, call.num_steps) == (recipe, num_steps)]
        by_prompt: dict[str, list[int]] = {}  # the adapters of one prompt are in memory at once, no more
        for i in places:
            by_prompt.setdefault(calls[i].condition.prompt, []).append(i)
        for of_prompt in by_prompt.values():
            alike = _alike([calls[i].condition for i in of_prompt], of_prompt)
            adapters = factory.generate([calls[same[0]].condition for same in alike])
            yield from zip(alike, adapters, strict=True)


def _alike(conditions: Sequence[Condition], places: Sequence[int]) -> list[list[int]]:
    """The places of conditions of one prompt, those of equal conditions together."""
    together: dict[tuple[str, LoraSettings, int, float], list[int]] = {}
    for place, condition in zip(places, conditions, strict=True):
        key = (condition.base.id, condition.lora, condition.seed, condition.scale)
        together.setdefault(key, []).append(place)
    return list(together.values())


def nearest_prompts(known: Sequence[str], asked: Sequence[str], config: Config) -> list[int]:
    """For each prompt the index of the nearest known one, by the embeddings that a generator reads."""
    encoder = ConditionEncoder(config.condition)
    known_KE = encoder.encode_prompts(known)
    return [int((known_KE @ encoder.encode_prompts([prompt])[0]).argmax()) for prompt in asked]
