"""Many adapters from stored generators, each with its prompt, base and seed; what is alike is made once.

for places, adapter in generate_samples(samples, generator_of, probes_of, config, device):
    digest = store.put(adapter)         # of all samples at these places
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from oral_ray.adapters.sampled import SampledAdapter
from oral_ray.bases.catalog import BaseRecord
from oral_ray.config import Config
from oral_ray.generation.condition import Condition
from oral_ray.generation.factory import AdapterFactory, ProbesOf, effective_sampling
from oral_ray.generator.condition import ConditionEncoder
from oral_ray.generator.model import Generator


class Sample(NamedTuple):
    """What is asked of a generator, by its recipe."""

    recipe: str
    num_steps: int
    prompt: str
    base: BaseRecord
    seed: int


def generate_samples(
    samples: Sequence[Sample], generator_of: Callable[[str], Generator], probes_of: ProbesOf, config: Config, device: str
) -> Iterator[tuple[list[int], SampledAdapter]]:  # fmt: skip
    """Every adapter with the places of the samples that ask for it, those of a generator together.

    `generator_of` loads a generator by its recipe, `probes_of` the weight probes of a base.
    """
    encoder = ConditionEncoder(config.condition)
    for recipe, num_steps in sorted({(sample.recipe, sample.num_steps) for sample in samples}):
        sampling = effective_sampling(config.sampling.model_copy(update={"num_steps": num_steps}), config.determinism)
        factory = AdapterFactory(generator_of(recipe), encoder, sampling, probes_of, device)
        asked: dict[str, dict[tuple[str, int], list[int]]] = {}  # by prompt: so many adapters are in memory at once
        for i, sample in enumerate(samples):
            if (sample.recipe, sample.num_steps) == (recipe, num_steps):
                asked.setdefault(sample.prompt, {}).setdefault((sample.base.id, sample.seed), []).append(i)
        for prompt, uses in asked.items():
            alike = [samples[places[0]] for places in uses.values()]
            conditions = [Condition(prompt, one.base, config.lora, one.seed) for one in alike]
            yield from zip(uses.values(), factory.generate(conditions), strict=True)


def nearest_prompts(known: Sequence[str], asked: Sequence[str], config: Config) -> list[int]:
    """For each prompt the index of the nearest known one, by the embeddings that a generator reads."""
    encoder = ConditionEncoder(config.condition)
    known_KE = encoder.encode_prompts(known)
    return [int((known_KE @ encoder.encode_prompts([prompt])[0]).argmax()) for prompt in asked]
