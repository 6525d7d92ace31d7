"""The generation service without its wire: a current generator, a store, and what may be asked of them.

    service = open_service(config)
    [digest] = service.generate([service.condition("Classify mails as spam or not.", "minilm-l6-t3")], seeds=[0])
    service.get(digest), service.uri(digest)

Only base ids of the store are accepted, never paths.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from oral_ray.adapters.artifact import AdapterArtifact
from oral_ray.config import Config
from oral_ray.errors import GeneratorError, LayoutError
from oral_ray.factory import AdapterFactory, settled
from oral_ray.generator.condition import Condition, ConditionEncoder, check_prompt
from oral_ray.objects import Objects, open_objects
from oral_ray.release import refuse_base
from oral_ray.store.adapters import AdapterStore
from oral_ray.store.bases import BaseShelf, stored_probes
from oral_ray.store.generators import current_generator, get_generator


@dataclass(frozen=True, slots=True)
class GenerationService:
    """Generates adapters for the base versions of one store."""

    config: Config
    objects: Objects
    factory: AdapterFactory

    def condition(self, prompt: str, base_id: str) -> Condition:
        """What is asked for. What cannot be made is refused here, where it fails no other request of its batch.

        Raises ConditionError for the prompt, BaseModelError for a base that is not (wholly) there, LayoutError for one
        that the generator has not learnt or that cannot have such an adapter.
        """
        check_prompt(prompt)
        base = BaseShelf(self.objects, self.config.bases.prefix).record(base_id)
        if refusal := refuse_base(base, self.factory.generator.spec.architectures, self.config.lora):
            raise LayoutError(f"base {base_id!r}: {refusal}")
        probes = stored_probes(self.objects, base, self.factory.encoder.config)
        return Condition(prompt, base, probes, self.config.lora)

    def generate(self, conditions: Sequence[Condition], seeds: Sequence[int]) -> list[str]:
        """Generate and store; the digests, in order."""
        store = AdapterStore(self.objects)
        return [store.put(artifact) for artifact in self.factory.generate(conditions, seeds)]

    def get(self, digest: str) -> AdapterArtifact:
        """A stored artifact; ArtifactError when there is none."""
        return AdapterStore(self.objects).get(digest)

    def pull(self, digest: str, folder: Path) -> Path:
        """Write a stored artifact into a folder."""
        return AdapterStore(self.objects).pull(digest, folder)

    def uri(self, digest: str) -> str:
        """Where a stored artifact lies."""
        return f"{self.objects.uri}/{AdapterStore.prefix(digest)}".rstrip("/")


def open_service(config: Config, device: str = "cpu") -> GenerationService:
    """Load the configured (or current) generator; GeneratorError when there is none."""
    objects = open_objects(config.store.uri)
    recipe = config.serve.generator or current_generator(objects, config.name)
    if recipe is None:
        raise GeneratorError(f"no generator named {config.name!r} in {objects.uri}; run jobs/train.py first")
    generator = get_generator(objects, recipe)
    encoder = ConditionEncoder(generator.spec.condition)
    sampling = settled(config.sampling, config.determinism)
    return GenerationService(config, objects, AdapterFactory(generator, encoder, sampling, device))
