"""Configurations of well-known models, architecture numbers only (from their public model cards): layouts without weights.

layout = layout_of("llama-3.1-8b", "all-linear", r=16, token_dim=1024)
"""

from pathlib import Path

from oral_ray.adapters.layout import AdapterLayout
from oral_ray.bases.sources import open_source
from oral_ray.bases.spec import BaseModelSpec, read_spec
from oral_ray.config import LoraSettings
from oral_ray.errors import BaseModelError, ConfigError
from oral_ray.objects import FileObjects

FOLDER = Path(__file__).parent
MODELS = tuple(sorted(path.parent.name for path in FOLDER.glob("*/config.json")))
TARGETS, RANKS = ("q,v", "all-linear"), (4, 8, 16, 64)


def spec_of(model: str) -> BaseModelSpec:
    """The spec of one of `MODELS`, or of any source of a base model: a folder with a config.json, hf:ORG/NAME, ..."""
    if model in MODELS:
        return read_spec(FileObjects(FOLDER / model))
    try:
        with open_source(model) as (objects, prefix):
            return read_spec(objects, prefix)
    except BaseModelError as error:
        known = ", ".join(MODELS)
        raise ConfigError(f"no configuration of {model!r}; there are {known}, and any base model: {error}") from None


def layout_of(model: str, targets: str, r: int, token_dim: int) -> AdapterLayout:
    """`q,v` are the query and value modules, fused ones where a model has those; `all-linear` every role that is named.

    A UNet's self-attention has no role: its layouts are those of the cross-attention.
    """
    spec = spec_of(model)
    if targets not in TARGETS:
        raise ConfigError(f"no targets {targets!r}; there are {' and '.join(TARGETS)}")
    wanted = ("q", "v", "qkv") if targets == "q,v" else ("q", "k", "v", "qkv", "o", "gate", "up", "down")
    roles = {module.role for module in spec.modules}
    chosen = tuple(role for role in wanted if role in roles)
    layout = AdapterLayout.of(spec, LoraSettings(r=r, lora_alpha=2.0 * r, target_modules=chosen), token_dim)
    layout.check_rank()
    return layout
