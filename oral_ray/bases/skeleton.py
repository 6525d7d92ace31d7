"""What a base model is made of: its linear modules and their shapes, and what everything else in it is.

This is the truth about a base, read off its own class (`building`). Here is what is known of single families: modules that
are linear and that peft does not adapt under their names.

    skeleton = build_skeleton(config, "s3://bucket/bases/v1")
    skeleton.kind, skeleton.linears[0]      # "causal", Linear(name="model.layers.0.self_attn.q_proj", ...)
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from oral_ray.bases.building import build_on_meta
from oral_ray.bases.sizes import check_sizes
from oral_ray.errors import BaseModelError

# What peft does not adapt under its name. In state-space layers fused kernels read the weight and pass an adapter by: the
# types are those that peft refuses. (Other hybrids, such as granitemoehybrid, do so in training mode only, and a base stays
# in evaluation mode.) In models whose experts were once modules it takes the names that these had for the fused experts.
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
    `kind` is the name of its kind (`oral_ray.modalities`), `hidden_size` None where the config does not give one.
    """

    kind: str
    hidden_size: int | None
    linears: tuple[Linear, ...]
    rest: Mapping[str, str]


def build_skeleton(config: Mapping[str, Any], where: str) -> Skeleton:
    """The skeleton of the model that a config.json describes; `where` names it in errors.

    Raises BaseModelError for numbers that are none, for a type that the installed transformers or diffusers does not
    know, and for what its class refuses.
    """
    check_sizes(config, where)
    try:
        return _built(json.dumps(config, sort_keys=True))
    except BaseModelError as error:
        raise BaseModelError(f"{where}/config.json: {error}") from None


@lru_cache(maxsize=64)
def _built(config_json: str) -> Skeleton:
    config = json.loads(config_json)
    built = build_on_meta(config)
    linears, rest = _modules(built.model, config["model_type"])
    return Skeleton(built.kind.name, built.hidden_size, linears, rest)


def _modules(model: Any, model_type: str) -> tuple[tuple[Linear, ...], dict[str, str]]:
    """`Skeleton.linears` and `Skeleton.rest`."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    linears: list[Linear] = []
    rest: dict[str, str] = {}
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
    return tuple(linears), rest


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
