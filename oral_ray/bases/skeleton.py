"""A base model's own class, built from config.json alone on torch's meta device: which modules it has, and their shapes.

This is the truth about a base: transformers' class (`AutoModelForCausalLM`, `AutoModelForImageTextToText`, `AutoModel`,
by the kind of the base) or diffusers' (the one that the config names). No weights are read, no memory is taken for them,
and code that a checkpoint brings along is never run. Building takes 0.05 to 1 s; torch, transformers and diffusers are
imported when the first skeleton is built.

    skeleton = build_skeleton(config, "s3://bucket/bases/v1")
    skeleton.kind, skeleton.linears[0]      # "causal", Linear(name="model.layers.0.self_attn.q_proj", ...)
"""

import contextlib
import json
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from oral_ray.errors import BaseModelError

Kind = Literal["encoder", "causal", "image-text", "encoder-decoder", "vision", "audio", "unet", "diffusion-transformer"]
"""What a base is used as. Encoders and causal models can be trained and scored; the others have layouts."""

MAX_LAYERS, MAX_WIDTH, MAX_MODULES = 1000, 10_000_000, 100_000
_LAYERS = {
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth", "encoder_layers", "decoder_layers",
    "num_decoder_layers", "num_single_layers",
}  # fmt: skip
_WIDTHS = {
    "hidden_size", "intermediate_size", "moe_intermediate_size", "embedding_size", "vocab_size", "n_embd", "n_inner", "dim",
    "hidden_dim", "embed_dim", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_model", "d_ff", "d_kv", "head_dim",
    "num_attention_heads", "num_key_value_heads", "num_heads", "n_head", "n_heads", "encoder_attention_heads",
    "decoder_attention_heads", "attention_head_dim", "cross_attention_dim", "block_out_channels", "in_channels",
    "out_channels",
}  # fmt: skip
# What peft does not adapt under its name. In state-space layers fused kernels read the weight and pass an adapter by; in
# models whose experts were once modules it takes the names that these had for the fused experts.
_STATE_SPACE = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}
_EXPERT_NAMES = {
    "mixtral": {"gate", "w1", "w2", "w3"}, "qwen2_moe": {"gate", "gate_proj", "up_proj", "down_proj"},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear module, W [d_out, d_in]; `transposed` where its class stores [d_in, d_out] (Conv1D)."""

    name: str
    d_in: int
    d_out: int
    transposed: bool


@dataclass(frozen=True, slots=True)
class Skeleton:
    """What a model is made of.

    `linears` are the modules that a LoRA can adapt, in the order in which data passes them; `rest` says of every other
    module, and of every matrix that stands in a model under a name of its own, what it is ("is a LayerNorm, ...").
    `hidden_size` is None where the config does not give one.
    """

    kind: Kind
    hidden_size: int | None
    linears: tuple[Linear, ...]
    rest: Mapping[str, str]


def build_skeleton(config: Mapping[str, Any], where: str) -> Skeleton:
    """The skeleton of the model that a config.json describes; `where` names it in errors.

    Raises BaseModelError for numbers that are none, for a type that the installed transformers or diffusers does not
    know, and for what its class refuses.
    """
    _check_numbers(config, where)
    try:
        return _built(json.dumps(config, sort_keys=True))
    except BaseModelError as error:
        raise BaseModelError(f"{where}/config.json: {error}") from None


def knows() -> list[str]:
    """The versions of the packages that decide which models are known."""
    return [f"{package} {_version(package)}" for package in ("transformers", "diffusers")]


def _check_numbers(config: Mapping[str, Any], where: str, path: str = "") -> None:
    """Before anything is built: with a wrong number a class may build without end, or make do with it."""
    for key, value in config.items():
        name = f"{path}{key}"
        if isinstance(value, Mapping):
            _check_numbers(value, where, f"{name}.")
        elif key in _LAYERS | _WIDTHS:
            limit = MAX_LAYERS if key in _LAYERS else MAX_WIDTH
            for number in value if isinstance(value, list) else [value]:
                if number is not None and (type(number) is not int or not 0 < number <= limit):
                    raise BaseModelError(
                        f"{where}/config.json gives {name}={repr(number)[:60]}; it has to be a whole number from 1 to "
                        f"{limit:,}"
                    )


@lru_cache(maxsize=64)
def _built(config_json: str) -> Skeleton:
    config = json.loads(config_json)
    is_of_diffusers = config["model_type"] == config.get("_class_name")  # it names a class instead of a type
    return _of_diffusers(config) if is_of_diffusers else _of_transformers(config)


def _of_transformers(config: dict[str, Any]) -> Skeleton:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = config["model_type"]
    package = f"transformers {_version('transformers')}"
    if model_type not in CONFIG_MAPPING:
        own = "; its own code (auto_map) is never run" if config.get("auto_map") else ""
        meant = next((known for known in CONFIG_MAPPING if known.lower() == model_type.lower()), None)
        remedy = f"write {meant!r}" if meant else "upgrade transformers to a version that does"
        raise BaseModelError(f"{package} does not know model type {model_type!r}{own}; {remedy}")
    with _building(f"{package} cannot build a {model_type} model from it"):
        own_config = _read_config(config)
        kind, auto = _kind(config, own_config)
        if type(own_config) not in auto._model_mapping:
            raise BaseModelError(
                f"{package} has no {auto.__name__} for model type {model_type!r}; take a base of another type"
            )
        model = _on_meta(lambda: auto.from_config(own_config, trust_remote_code=False))
    if kind == "encoder":
        kind = _kind_by_input(model)
    hidden = getattr(own_config.get_text_config(), "hidden_size", None)
    return _skeleton(model, kind, hidden if isinstance(hidden, int) else None, model_type)


def _read_config(config: Mapping[str, Any]) -> Any:
    """The config object as a loader makes it: transformers reads folders, and has rules of its own for some."""
    from transformers import AutoConfig

    # How attention is computed and in which precision is no matter of shapes, and may ask for what is not installed.
    ignored = ("attn_implementation", "_attn_implementation", "torch_dtype", "dtype", "quantization_config")
    plain = {key: value for key, value in config.items() if key not in ignored}
    with tempfile.TemporaryDirectory(prefix="oral-config-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(plain))
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _kind(config: Mapping[str, Any], own_config: Any) -> tuple[Kind, Any]:
    """What a transformers model is used as, and the class that builds it. What its weights were saved from (a masked
    language model, a classifier) does not count: a head that this kind lacks is left out."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    model_type = own_config.model_type
    architectures = str(config.get("architectures"))
    if model_type in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return "image-text", transformers.AutoModelForImageTextToText
    if hasattr(own_config, "vision_config"):
        return "image-text", transformers.AutoModel
    if getattr(own_config, "is_encoder_decoder", False):
        writes = "ForConditionalGeneration" in architectures
        writes = writes and model_type in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
        return "encoder-decoder", transformers.AutoModelForSeq2SeqLM if writes else transformers.AutoModel
    # Types of both kinds (BERT's family) read both ways unless their config says that they decode.
    both = model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and (not both or config.get("is_decoder") is True):
        return "causal", transformers.AutoModelForCausalLM
    return "encoder", transformers.AutoModel


def _kind_by_input(model: Any) -> Kind:
    """`encoder` for a model that reads text, `vision` or `audio` for one that does not."""
    kinds: dict[str, Kind] = {"pixel_values": "vision", "input_values": "audio", "input_features": "audio"}
    return kinds.get(model.main_input_name, "encoder")


def _of_diffusers(config: dict[str, Any]) -> Skeleton:
    try:
        import diffusers
        from diffusers.models.modeling_utils import ModelMixin
    except ImportError:
        raise BaseModelError(
            f"a {config['_class_name']} is a model of diffusers, which is not installed; run pip install diffusers"
        ) from None
    name = str(config["_class_name"])
    package = f"diffusers {_version('diffusers')}"
    cls: Any = getattr(diffusers, name, None) if name.isidentifier() else None
    if not isinstance(cls, type) or ModelMixin not in cls.__mro__:
        raise BaseModelError(
            f"{package} has no model {name!r}; take a pipeline's unet or transformer folder, or upgrade diffusers"
        )
    if "UNet" not in name and "Transformer" not in name:
        raise BaseModelError(f"a {name} is not what a pipeline denoises with; take its unet or transformer folder")
    plain = {key: value for key, value in config.items() if key != "model_type"}
    with _building(f"{package} cannot build a {name} from it"):
        model = _on_meta(lambda: cls.from_config(plain))
    return _skeleton(model, "unet" if "UNet" in name else "diffusion-transformer", None, name)


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


def _on_meta(build: Any) -> Any:
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


def _skeleton(model: Any, kind: Kind, hidden_size: int | None, model_type: str) -> Skeleton:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    linears, rest = [], {}
    inside_attention, expert_names = set(), _expert_names(model_type)
    for name, module in model.named_modules():
        transposed = isinstance(module, Conv1D)
        leaf = name.rpartition(".")[2]
        if leaf == "out_proj" and model_type in _STATE_SPACE:
            rest[name] = f"is read by the kernels of {model_type} without an adapter (peft refuses it)"
        elif leaf in expert_names and isinstance(module, nn.Linear):
            rest[name] = f"has the name of an expert, which peft takes for the fused experts of a {model_type}"
        elif name in inside_attention:  # it reads the weight and never calls the module
            rest[name] = "is read by its MultiheadAttention without an adapter"
        elif transposed or (isinstance(module, nn.Linear) and not type(module).__name__.endswith("Router")):
            d_out, d_in = reversed(module.weight.shape) if transposed else module.weight.shape
            linears.append(Linear(name, int(d_in), int(d_out), transposed))
        elif name:
            rest[name] = f"is a {type(module).__name__}, which is not linear"
            _add_weights(rest, name, module)
        if isinstance(module, nn.MultiheadAttention):
            inside_attention |= {f"{name}.{child}" for child, _ in module.named_modules()}
    # diffusers registers the blocks on the way up before the one in the middle.
    linears.sort(key=lambda linear: linear.name.startswith("up_blocks."))
    return Skeleton(kind, hidden_size, tuple(linears), rest)


def _expert_names(model_type: str) -> set[str]:
    from transformers import conversion_mapping

    old_layout = {"mixtral": "mixtral"} | getattr(conversion_mapping, "_MODEL_TO_CONVERSION_PATTERN", {})
    return _EXPERT_NAMES.get(old_layout.get(model_type, ""), set())


def _add_weights(rest: dict[str, str], name: str, module: Any) -> None:
    """Matrices that a module holds itself, as fused experts do: one may take their names for a module's."""
    for own, parameter in module.named_parameters(recurse=False):
        if own != "weight" and parameter.dim() > 1:
            what = "one fused weight of all experts" if "expert" in name else "a weight of no module"
            rest[f"{name}.{own}"] = f"is {what}, which a plain LoRA does not adapt"


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
