"""The generation service without its wire: one catalog of a store, and one generator that makes what may be asked.

service = open_service(config)
[digest] = service.generate([service.catalog.condition("Classify mails as spam or not.", "minilm-l6-t3", seed=0)])
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from oral_ray.config import Config
from oral_ray.generation.catalog import GeneratorCatalog
from oral_ray.generation.condition import Condition
from oral_ray.generation.factory import AdapterFactory, effective_sampling, open_factory
from oral_ray.objects import open_objects
from oral_ray.store.adapters import AdapterStore


@dataclass(frozen=True, slots=True)
class GenerationService:
    """Generates adapters for the base versions of one store with one generator."""

    catalog: GeneratorCatalog
    factory: AdapterFactory

    @property
    def recipe(self) -> str:
        """The recipe of the generator in use."""
        return self.factory.generator.spec.recipe

    @property
    def adapters(self) -> AdapterStore:
        """Where adapters are stored."""
        return AdapterStore(self.catalog.objects)

    def generate(self, conditions: Sequence[Condition]) -> list[str]:
        """Generate, store, and note the answers; the digests, in order."""
        digests = []
        for condition, adapter in zip(conditions, self.factory.generate(conditions), strict=True):
            self.catalog.check()
            digests.append(self.adapters.put(adapter))
            self.note_answer(condition, digests[-1])
        return digests

    def note_answer(self, condition: Condition, digest: str) -> None:
        """Keep a stored adapter as the answer to its condition."""
        self.catalog.note_answer(self.catalog.answer_key(condition, self.recipe), digest)

    def pull(self, digest: str, folder: Path) -> Path:
        """Write a stored artifact into a folder."""
        return self.adapters.pull(digest, folder)


def open_service(config: Config, device: str = "cpu", recipe: str = "") -> GenerationService:
    """Load a generator, the configured (or current) one when none is named; GeneratorError when there is none."""
    catalog = GeneratorCatalog(config, open_objects(config.store))
    sampling = effective_sampling(config.sampling, config.determinism)
    return GenerationService(catalog, open_factory(catalog.objects, recipe or catalog.recipe, sampling, device))
