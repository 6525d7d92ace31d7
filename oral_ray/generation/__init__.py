"""From conditions to adapters: the factory, what may be asked of it, and the service without its wire."""

from oral_ray.generation.catalog import GeneratorCatalog
from oral_ray.generation.factory import AdapterFactory, effective_sampling, open_factory
from oral_ray.generation.service import GenerationService, open_service
from oral_ray.generator.condition import MAX_PROMPT_CHARS, Condition

__all__ = [
    "MAX_PROMPT_CHARS",
    "AdapterFactory",
    "Condition",
    "GenerationService",
    "GeneratorCatalog",
    "effective_sampling",
    "open_factory",
    "open_service",
]
