"""Many adapters from stored generators, each with its prompt, base and seed; what is alike is made once.

for i, artifact in generate_samples(samples, generator_of, probes, config, device):
    digests[i] = store.put(artifact)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from oral_ray.adapters.artifact import AdapterArtifact
from oral_ray.bases.catalog import BaseRecord
from oral_ray.config import Config
from oral_ray.generation.factory import AdapterFactory, settled
from oral_ray.generator.condition import Condition, ConditionEncoder
from oral_ray.generator.model import Generator


class Sample(NamedTuple):
    """What is asked of a generator, by its recipe."""

    recipe: str
    num_steps: int
    prompt: str
    base: BaseRecord
    seed: int


def generate_samples(
    samples: Sequence[Sample], generator_of: Callable[[str], Generator], probes: Mapping[str, Mapping[str, Tensor]],
    config: Config, device: str,
) -> Iterator[tuple[int, AdapterArtifact]]:  # fmt: skip
    """(index, adapter) of every sample, those of a generator together; equal samples share one adapter.

    `generator_of` loads a generator by its recipe, `probes` are the weight probes of the bases by id.
    """
    encoder = ConditionEncoder(config.condition)
    for recipe, num_steps in sorted({(sample.recipe, sample.num_steps) for sample in samples}):
        sampling = settled(config.sampling.model_copy(update={"num_steps": num_steps}), config.determinism)
        factory = AdapterFactory(generator_of(recipe), encoder, sampling, device)
        asked: dict[str, dict[tuple[str, int], list[int]]] = {}  # by prompt: so many adapters are in memory at once
        for i, sample in enumerate(samples):
            if (sample.recipe, sample.num_steps) == (recipe, num_steps):
                asked.setdefault(sample.prompt, {}).setdefault((sample.base.id, sample.seed), []).append(i)
        for prompt, uses in asked.items():
            alike = [samples[places[0]] for places in uses.values()]
            conditions = [Condition(prompt, one.base, probes[one.base.id], config.lora) for one in alike]
            made = factory.generate(conditions, [one.seed for one in alike])
            for artifact, places in zip(made, uses.values(), strict=True):
                yield from ((i, artifact) for i in places)


def nearest_prompts(known: Sequence[str], asked: Sequence[str], config: Config) -> list[int]:
    """For each prompt the index of the nearest known one, by the embeddings that a generator reads."""
    encoder = ConditionEncoder(config.condition)
    known_KE = encoder.encode_prompts(known)
    return [int((known_KE @ encoder.encode_prompts([prompt])[0]).argmax()) for prompt in asked]
