"""A diffusers pipeline as a base: a folder with model_index.json and one folder per component. No torch, no weights.

The base is what its components draw together, so its fingerprint covers each of them: the denoiser (whose modules are the
layout), the autoencoder, text encoders, tokenizers and the scheduler. A component that changes nothing that is drawn from
a caption (`LEFT_OUT`) is neither fingerprinted nor loaded.

    folder = read_pipeline(open_objects("/models/sd"))
    folder.class_name, folder.denoiser.name, [component.name for component in folder.components]
"""

import hashlib
import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from oral_ray.bases.checkpoint import (
    CONFIG,
    OF_DIFFUSERS,
    OF_TRANSFORMERS,
    Checkpoint,
    behaviour_files,
    check_tokenizer,
    read_config,
    read_json,
    read_tensors,
    weight_files,
)
from oral_ray.bases.contents import PIPELINE_INDEX
from oral_ray.bases.fingerprint import content_fingerprint
from oral_ray.bases.headers import Files
from oral_ray.bases.storage import check_plain
from oral_ray.config import canonical_json
from oral_ray.errors import BaseModelError

logger = logging.getLogger(__name__)
DENOISERS = ("unet", "transformer")
LEFT_OUT = {
    "safety_checker": "blackens images after they are drawn",
    "feature_extractor": "prepares images for the safety checker",
    "image_encoder": "reads images that stand in for a caption",
}
"""Components that are neither loaded nor fingerprinted, and what they are for."""
SCHEDULER_CONFIG = "scheduler_config.json"
_NO_SETTINGS = ("_diffusers_version", "_name_or_path", "requires_safety_checker")
_LIBRARIES = ("diffusers", "transformers")
_MAX_MB = 1


@dataclass(frozen=True, slots=True)
class Component:
    """One component: its name (that of its folder), whose class it is, and what of its folder counts.

    Tokenizers have no config, only models have tensors. `files` are names in the component's own folder.
    """

    name: str
    library: str
    class_name: str
    checkpoint: Checkpoint

    @property
    def is_tokenizer(self) -> bool:
        """Whether it is a vocabulary."""
        return _is_tokenizer(self.class_name)

    @property
    def is_scheduler(self) -> bool:
        """Whether it is the schedule of the noise."""
        return _is_scheduler(self.class_name)

    @property
    def is_model(self) -> bool:
        """Whether it has weights."""
        return not (self.is_tokenizer or self.is_scheduler)


@dataclass(frozen=True, slots=True)
class PipelineFolder:
    """The components of a pipeline that count, and what draws with them."""

    class_name: str
    settings: dict[str, Any]
    components: tuple[Component, ...]

    @property
    def denoiser(self) -> Component:
        """The component that adapters are of."""
        return next(component for component in self.components if component.name in DENOISERS)

    @property
    def files(self) -> list[str]:
        """Every file that counts, below the pipeline's folder."""
        return [f"{part.name}/{name}" for part in self.components for name in part.checkpoint.files]


def is_pipeline(files: Files, prefix: str = "") -> bool:
    """Whether a diffusers pipeline lies under a prefix."""
    return files.exists(f"{prefix}{PIPELINE_INDEX}")


def denoiser_prefix(files: Files, prefix: str = "") -> str:
    """Where the config and the weights lie that a layout is made of: under the prefix, or in a pipeline's denoiser."""
    if not is_pipeline(files, prefix):
        return prefix
    return next((f"{prefix}{name}/" for name in DENOISERS if files.exists(f"{prefix}{name}/{CONFIG}")), prefix)


def read_pipeline(files: Files, prefix: str = "") -> PipelineFolder:
    """The pipeline under a prefix; BaseModelError where a component that counts is missing, damaged or code of its own."""
    where = f"{files.uri}/{prefix}".rstrip("/")
    index = read_json(files, f"{prefix}{PIPELINE_INDEX}", _MAX_MB)
    class_name = index.get("_class_name")
    if not isinstance(class_name, str):
        raise BaseModelError(
            f"{where}/{PIPELINE_INDEX} names no class of diffusers (_class_name is {class_name!r}); a pipeline with code "
            "of its own is not loaded, take one of diffusers"
        )
    names = [info.key.removeprefix(prefix) for info in files.list(prefix)]
    components = []
    for name, entry in sorted(index.items()):
        if name.startswith("_") or not isinstance(entry, list) or entry in ([None, None], []):
            continue
        if name in LEFT_OUT:
            logger.info("%s: %s is left out, it %s", where, name, LEFT_OUT[name])
            continue
        components.append(_component(files, prefix, name, entry, names))
    found = [component.name for component in components]
    if "vae" not in found:
        raise BaseModelError(
            f"{where}/{PIPELINE_INDEX} names no vae, without which no image is read or drawn; add the pipeline's "
            "autoencoder, or take another pipeline"
        )
    if len([name for name in found if name in DENOISERS]) != 1:
        raise BaseModelError(
            f"{where}/{PIPELINE_INDEX} names {', '.join(found)}; a pipeline has one denoiser, its unet or its transformer"
        )
    settings = {key: value for key, value in index.items() if key not in _NO_SETTINGS and not isinstance(value, list)}
    return PipelineFolder(class_name, settings, tuple(components))


def pipeline_fingerprint(files: Files, prefix: str, folder: PipelineFolder) -> str:
    """32 hex digits over the settings of model_index.json and the content of every component that counts."""
    digest = hashlib.sha256(canonical_json(folder.settings).encode())
    for part in folder.components:
        content = content_fingerprint(files, f"{prefix}{part.name}/", part.checkpoint)
        digest.update(f"{part.name} {part.library} {part.class_name} {content}\n".encode())
    return digest.hexdigest()[:32]


def _component(files: Files, prefix: str, name: str, entry: list[Any], names: Collection[str]) -> Component:
    where, below = f"{files.uri}/{prefix}{name}", f"{prefix}{name}/"
    library, class_name = (*entry, None, None)[:2]
    class_name = class_name if isinstance(class_name, str) else ""
    if library not in _LIBRARIES or not (name.isidentifier() and class_name.isidentifier()):
        raise BaseModelError(
            f"{where}: {PIPELINE_INDEX} names {entry!r}, which is no class of {' or '.join(_LIBRARIES)}; code that a "
            "pipeline brings along is never run"
        )
    own = {key.removeprefix(f"{name}/") for key in names if key.startswith(f"{name}/")}
    if not own:
        raise BaseModelError(f"{where} is missing, and {PIPELINE_INDEX} names it; upload the whole pipeline")
    top = {key for key in own if "/" not in key}
    if _is_tokenizer(class_name):
        check_tokenizer(top, where)
        return Component(name, library, class_name, Checkpoint({}, {}, tuple(behaviour_files(top))))
    if _is_scheduler(class_name):
        if SCHEDULER_CONFIG not in top:
            raise BaseModelError(f"{where} has no {SCHEDULER_CONFIG}; upload the whole pipeline")
        config = read_json(files, below + SCHEDULER_CONFIG, _MAX_MB)
        return Component(name, library, class_name, Checkpoint(config, {}, (SCHEDULER_CONFIG,)))
    config = read_config(files, below)
    own_name = config.get("_class_name", class_name)
    if own_name != class_name:
        raise BaseModelError(
            f"{where}/{CONFIG} is of a {own_name}, {PIPELINE_INDEX} says {class_name}; upload the two that belong together"
        )
    called = OF_DIFFUSERS if library == "diffusers" else OF_TRANSFORMERS
    tensors = read_tensors(files, below, called)
    if not tensors:
        raise BaseModelError(f"{where} {_why_no_weights(top, called.single)}")
    check_plain(config, tensors, where)
    index = {called.index} if called.single not in top else set()
    kept = {CONFIG, *index, *weight_files(tensors, below)}
    return Component(name, library, class_name, Checkpoint(config, tensors, tuple(sorted(kept))))


def _is_tokenizer(class_name: str) -> bool:
    return "Tokenizer" in class_name


def _is_scheduler(class_name: str) -> bool:
    return class_name.endswith("Scheduler")


def _why_no_weights(names: Collection[str], single: str) -> str:
    if pickles := sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))):
        return (
            f"has pickle weights only ({pickles[0]}), and pickle files are never read; save the pipeline again with "
            "safe_serialization"
        )
    if variants := sorted(name for name in names if name.endswith(".safetensors")):
        return f"has its weights under another name only ({variants[0]}); name them {single}, or save without a variant"
    return f"has no weights; add {single}"
