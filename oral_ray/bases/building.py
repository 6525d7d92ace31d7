"""A base's own class, built from config.json alone on torch's meta device: no weights are read, no memory is taken.

The class is one of transformers (which of its auto classes, the kind of the base says) or the one of diffusers that the
config names. Code that a checkpoint brings along is never run. torch, transformers and diffusers are imported by the first
call; one takes 0.05 to 1 s.

    built = build_on_meta(config)
    built.kind.name, type(built.model).__name__         # "causal", "LlamaForCausalLM"
"""

import contextlib
import json
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oral_ray.errors import BaseModelError

if TYPE_CHECKING:
    from oral_ray.modalities import Kind

MAX_MODULES = 100_000
_BASES = {
    "ModelMixin": "model", "SchedulerMixin": "scheduler", "DiffusionPipeline": "pipeline", "PreTrainedModel": "model",
    "PreTrainedTokenizerBase": "tokenizer",
}  # fmt: skip
"""What the base classes of diffusers and transformers are called in errors."""


@dataclass(frozen=True, slots=True)
class Built:
    """A model without weights, what kind of base it is, and its hidden size (None where the config gives none)."""

    kind: "Kind"
    model: Any
    hidden_size: int | None


def build_on_meta(config: Mapping[str, Any]) -> Built:
    """The model that a config.json describes.

    Raises BaseModelError for a type that the installed transformers or diffusers does not know, and for what its class
    refuses.
    """
    is_of_diffusers = config["model_type"] == config.get("_class_name")  # it names a class instead of a type
    return _of_diffusers(config) if is_of_diffusers else _of_transformers(config)


def config_object(config: Mapping[str, Any]) -> Any:
    """transformers' object for a config, made as a loader makes it: from a folder, which some types have rules for."""
    from transformers import AutoConfig

    with tempfile.TemporaryDirectory(prefix="oral-config-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def knows() -> list[str]:
    """The versions of the packages that decide which models are known."""
    return [f"{package} {_version(package)}" for package in ("transformers", "diffusers")]


def _of_transformers(config: Mapping[str, Any]) -> Built:
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from oral_ray.modalities import kind_of_config
    from oral_ray.modalities.kind import loads

    model_type = config["model_type"]
    package = f"transformers {_version('transformers')}"
    if model_type not in CONFIG_MAPPING:
        own_code = "; its own code (auto_map) is never run" if config.get("auto_map") else ""
        meant = next((known for known in CONFIG_MAPPING if known.lower() == model_type.lower()), None)
        remedy = f"write {meant!r}" if meant else "upgrade transformers to a version that does"
        raise BaseModelError(f"{package} does not know model type {model_type!r}{own_code}; {remedy}")
    with _building(f"{package} cannot build a {model_type} model from it"):
        own = config_object(_shapes_of(config))
        kind = kind_of_config(config, own)
        assert kind is not None, "what no other kind claims of transformers' models is an encoder"
        auto_class = kind.layout_class(config, own)
        if not loads(auto_class, own):
            raise BaseModelError(
                f"{package} has no {auto_class} for model type {model_type!r}; take a base of another type"
            )
        model = _on_meta(lambda: getattr(transformers, auto_class).from_config(own, trust_remote_code=False))
    hidden = getattr(own.get_text_config(), "hidden_size", None)
    return Built(kind, model, hidden if isinstance(hidden, int) else None)


def _shapes_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without how attention is computed and in which precision, which may ask for what is not installed."""
    ignored = ("attn_implementation", "_attn_implementation", "torch_dtype", "dtype", "quantization_config")
    return {key: value for key, value in config.items() if key not in ignored}


def diffusers_class(name: str, base: str = "ModelMixin") -> Any:
    """A class of diffusers that inherits one of its `base` classes; BaseModelError where there is none of that name."""
    try:
        import diffusers
    except ImportError:
        raise BaseModelError(
            f"a {name} is a class of diffusers, which is not installed; run pip install diffusers"
        ) from None
    cls: Any = getattr(diffusers, name, None) if name.isidentifier() else None
    if not isinstance(cls, type) or base not in {parent.__name__ for parent in cls.__mro__}:
        remedy = "take a pipeline's unet or transformer folder" if base == "ModelMixin" else "take one that it has"
        raise BaseModelError(
            f"diffusers {_version('diffusers')} has no {_BASES[base]} {name!r}; {remedy}, or upgrade diffusers"
        )
    return cls


def transformers_class(name: str, base: str) -> Any:
    """A class of transformers that inherits one of its `base` classes; BaseModelError where there is none of that name."""
    import transformers

    cls: Any = getattr(transformers, name, None) if name.isidentifier() else None
    if not isinstance(cls, type) or base not in {parent.__name__ for parent in cls.__mro__}:
        raise BaseModelError(
            f"transformers {_version('transformers')} has no {_BASES[base]} {name!r}; take one that it has, or "
            "upgrade transformers"
        )
    return cls


def build_component(library: str, class_name: str, config: Mapping[str, Any]) -> Any:
    """A model of a pipeline on the meta device; BaseModelError for a class that is none, or that refuses the config."""
    with _building(f"{library} {_version(library)} cannot build a {class_name} from it"):
        if library == "diffusers":
            cls = diffusers_class(class_name)
            plain = {key: value for key, value in config.items() if key != "model_type"}
            return _on_meta(lambda: cls.from_config(plain))
        cls, own = transformers_class(class_name, "PreTrainedModel"), config_object(_shapes_of(config))
        return _on_meta(lambda: cls(own))


def _of_diffusers(config: Mapping[str, Any]) -> Built:
    from oral_ray.modalities import kind_of_config

    name = str(config["_class_name"])
    diffusers_class(name)
    kind = kind_of_config(config, None)
    if kind is None:
        raise BaseModelError(f"a {name} is not what a pipeline denoises with; take its unet or transformer folder")
    return Built(kind, build_component("diffusers", name, config), None)


@contextlib.contextmanager
def _building(failure: str) -> Iterator[None]:
    """Say what a model's class says against a config."""
    with _quiet():
        try:
            yield
        except BaseModelError:
            raise
        except Exception as error:  # a class raises whatever its numbers lead to: division by zero, a missing key, ...
            raise BaseModelError(f"{failure}: {_said(error)}") from None


def _said(error: Exception) -> str:
    """What an exception of a model's class says, in one line, with a remedy."""
    text = " ".join(str(error).split())[:300]
    if isinstance(error, ImportError):  # some models need one more package, and the text says which
        return text.partition(". Please note")[0]
    text = re.split(r"\w+Error: ", text)[-1].rstrip(".")  # transformers puts its validators' names in front
    plain = text if " " in text else f"{type(error).__name__} {text}"
    return f"{plain}; compare it with the config.json that was published"


def _on_meta(build: Callable[[], Any]) -> Any:
    """What `build` builds, without memory; BaseModelError for a model of more modules than any has."""
    import torch
    from torch.nn.modules.module import register_module_module_registration_hook

    own_thread, num_modules = threading.get_ident(), 0

    def count(*_: Any) -> None:
        nonlocal num_modules
        num_modules += threading.get_ident() == own_thread
        if num_modules > MAX_MODULES:
            raise BaseModelError(f"it describes a model of more than {MAX_MODULES:,} modules; check its numbers")

    counting = register_module_module_registration_hook(count)
    try:
        with torch.device("meta"):
            return build()
    finally:
        counting.remove()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of transformers and diffusers about keys of a config."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
