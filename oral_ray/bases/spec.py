"""BaseModelSpec: the geometry of a base model, from config.json and (where there are any) safetensors headers.

No torch, no weights. For a known model type the config alone is enough; headers are then compared with it. For an
unknown one the linear modules are read off the headers.

    spec = read_spec(open_objects("/models/llama"))
    spec.modules[0]       # LinearModule(name="model.layers.0.self_attn.q_proj", role="q", layer=0, d_in=..., d_out=...)
"""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict

from oral_ray.bases.checkpoint import read_config, read_tensors
from oral_ray.bases.families import FAMILIES, ROLE_OF_LEAF, Kind, Tower
from oral_ray.bases.headers import Files, TensorEntry
from oral_ray.config import fingerprint
from oral_ray.errors import BaseModelError

MAX_LAYERS, MAX_WIDTH = 1000, 10_000_000
_LAYER = re.compile(r"\.(\d+)\.")


class LinearModule(BaseModel):
    """One linear module: W is [d_out, d_in]; `transposed` where the checkpoint stores [d_in, d_out] (Conv1D)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    role: str
    layer: int
    d_in: int
    d_out: int
    transposed: bool = False


class BaseModelSpec(BaseModel):
    """What a base model looks like, without its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_type: str
    kind: Kind
    hidden_size: int
    num_layers: int
    modules: tuple[LinearModule, ...]

    @cached_property
    def digest(self) -> str:
        """The architecture digest: equal for all versions of one architecture."""
        return fingerprint(self)

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def metadata(self) -> str:
        """The sentence that describes the architecture to the generator (ORAL section 3.2)."""
        roles = ", ".join(dict.fromkeys(module.role for module in self.modules))
        what = "language model" if self.kind in ("encoder", "causal") else "model"
        return (
            f"{self.model_type} {self.kind} {what} with {self.num_layers} layers, "
            f"hidden size {self.hidden_size} and linear modules {roles}."
        )


def read_spec(files: Files, prefix: str = "") -> BaseModelSpec:
    """The spec of the checkpoint under a prefix; BaseModelError when config and headers disagree or are not enough."""
    config = read_config(files, prefix)
    return build_spec(config, read_tensors(files, prefix), f"{files.uri}/{prefix}".rstrip("/"))


def build_spec(config: Mapping[str, Any], tensors: Mapping[str, TensorEntry], where: str) -> BaseModelSpec:
    """Build a spec from a config and (possibly no) tensors."""
    model_type = str(config["model_type"])
    family = FAMILIES.get(model_type)
    try:
        towers = family.towers(config) if family else ()
        modules = _from_towers(towers) if towers else _from_tensors(tensors)
        hidden = towers[-1].sizes["hidden"] if towers else int(config.get("hidden_size") or config["n_embd"])
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise BaseModelError(
            f"{where}/config.json lacks or garbles {error}; it is not a full {model_type} config"
        ) from None
    if not modules:
        raise BaseModelError(
            f"{where}: model type {model_type!r} is not known and there are no safetensors headers to read it from; "
            f"known from config alone: {', '.join(sorted(FAMILIES))}"
        )
    for module in modules if tensors else ():
        shape = weight_entry(module, tensors, where).shape
        wanted = (module.d_in, module.d_out) if module.transposed else (module.d_out, module.d_in)
        if shape != wanted:
            raise BaseModelError(
                f"{where}: {module.name}.weight is {shape}, config.json says {wanted}; which is right?"
            )
    return BaseModelSpec(
        model_type=model_type,
        kind=kind_of(config),
        hidden_size=hidden,
        num_layers=1 + max(module.layer for module in modules),
        modules=modules,
    )


def kind_of(config: Mapping[str, Any]) -> Kind:
    """What kind of model a config describes, by its model type or, where that is not known, by its class's name."""
    family = FAMILIES.get(str(config["model_type"]))
    names = config.get("architectures")
    causal = isinstance(names, list) and any("CausalLM" in str(name) or "LMHead" in str(name) for name in names)
    return family.kind if family else "causal" if causal else "encoder"


def weight_entry(module: LinearModule, tensors: Mapping[str, TensorEntry], where: str) -> TensorEntry:
    """The tensor of a module's weight; checkpoints may carry or lack the prefix of the head class."""
    full = f"{module.name}.weight"
    inner = full.partition(".")[2]
    for name in (full, inner, full.replace("model.language_model.", "model.", 1)):
        if name in tensors:
            return tensors[name]
    prefixed = [name for name in tensors if name.endswith(f".{full}") and name.count(".") == full.count(".") + 1]
    if len(prefixed) == 1:  # `bert.`, `electra.`, ...: the base_model_prefix of a class with a head
        return tensors[prefixed[0]]
    raise BaseModelError(f"{where}: no tensor for {full!r} among {len(tensors)}; the checkpoint is of another model")


def _from_towers(towers: Sequence[Tower]) -> tuple[LinearModule, ...]:
    """The modules of all towers; layers are counted through, in the order in which data passes them."""
    modules: list[LinearModule] = []
    first = 0
    for tower in towers:
        for name, size in tower.sizes.items():
            if not isinstance(size, int) or not 0 < size <= (MAX_LAYERS if name == "layers" else MAX_WIDTH):
                raise TypeError(f"a possible value for {name!r} (it gives {size!r})")
        modules += (
            LinearModule(
                name=tower.prefix.format(i=layer) + name,
                role=role,
                layer=first + layer,
                d_in=tower.sizes[d_in],
                d_out=tower.sizes[d_out],
                transposed=tower.transposed,
            )
            for layer in range(tower.sizes["layers"])
            for role, name, d_in, d_out in tower.rows
        )
        first += tower.sizes["layers"]
    return tuple(modules)


def _from_tensors(tensors: Mapping[str, TensorEntry]) -> tuple[LinearModule, ...]:
    modules = []
    for name, entry in tensors.items():
        layer, leaf = _LAYER.search(name), name.removesuffix(".weight").rpartition(".")[2]
        if name.endswith(".weight") and len(entry.shape) == 2 and layer and "norm" not in leaf and "embed" not in name:
            d_out, d_in = entry.shape
            role = ROLE_OF_LEAF.get(leaf, "other")
            modules.append(
                LinearModule(name=name.removesuffix(".weight"), role=role, layer=int(layer[1]), d_in=d_in, d_out=d_out)
            )
    return tuple(sorted(modules, key=lambda module: (module.layer, module.name)))
