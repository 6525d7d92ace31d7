"""BaseModelSpec: the geometry of a base model, from config.json and (where there are any) safetensors headers.

No torch, no weights. For a known model type the config alone is enough; headers are then compared with it. For an
unknown one the linear modules are read off the headers.

    spec = read_spec(open_objects("/models/llama"))
    spec.modules[0]       # LinearModule(name="model.layers.0.self_attn.q_proj", role="q", layer=0, d_in=..., d_out=...)
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict

from oral_ray.bases.families import FAMILIES, ROLE_OF_LEAF, Kind, Tower
from oral_ray.bases.headers import Files, TensorEntry, read_header
from oral_ray.config import fingerprint
from oral_ray.errors import BaseModelError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_JSON_BYTES, MAX_LAYERS, MAX_WIDTH = 50_000_000, 1000, 10_000_000
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


def read_config(files: Files, prefix: str = "") -> dict[str, Any]:
    """config.json under a prefix, as a mapping."""
    key = f"{prefix}config.json"
    if not files.exists(key):
        raise BaseModelError(f"no base model at {files.uri}/{prefix}: config.json is missing; check the path")
    config = _read_json(files, key)
    model_type = config.get("model_type") or config.get("_class_name")  # diffusers names the class instead
    if not isinstance(model_type, str):
        raise BaseModelError(f"{files.uri}/{key} names no model_type; it is no transformers config.json")
    return config | {"model_type": model_type}


def read_tensors(files: Files, prefix: str = "") -> dict[str, TensorEntry]:
    """All tensors of the checkpoint under a prefix, sharded or not; empty when there are no safetensors files.

    Raises BaseModelError for a damaged file, a missing shard, or a tensor that its index promises and no shard has.
    """
    if files.exists(prefix + INDEX):
        weight_map = _read_json(files, prefix + INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
            raise BaseModelError(f"{files.uri}/{prefix}{INDEX} has no weight_map; upload it again")
        tensors: dict[str, TensorEntry] = {}
        for shard in sorted(set(weight_map.values())):
            if "/" in shard or not files.exists(prefix + shard):
                raise BaseModelError(f"shard {shard!r} of {files.uri}/{prefix} is missing; wait for it or upload it")
            header = read_header(files, prefix + shard)
            tensors |= {name: entry for name, entry in header.items() if weight_map.get(name) == shard}
        lost = sorted(set(weight_map) - set(tensors))
        if lost:
            raise BaseModelError(
                f"{files.uri}/{prefix}: {len(lost)} tensors of the index are not in their shard: {lost[0]!r}"
            )
        return tensors
    return read_header(files, prefix + SINGLE) if files.exists(prefix + SINGLE) else {}


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
    causal = any("CausalLM" in name or "LMHead" in name for name in config.get("architectures") or ())
    return BaseModelSpec(
        model_type=model_type,
        kind=family.kind if family else "causal" if causal else "encoder",
        hidden_size=hidden,
        num_layers=1 + max(module.layer for module in modules),
        modules=modules,
    )


def weight_entry(module: LinearModule, tensors: Mapping[str, TensorEntry], where: str) -> TensorEntry:
    """The tensor of a module's weight; checkpoints may carry or lack the prefix of the head class."""
    full = f"{module.name}.weight"
    bare = full.partition(".")[2]
    for name in (full, f"bert.{full}", f"roberta.{full}", f"model.{full}", bare):
        if name in tensors:
            return tensors[name]
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


def _read_json(files: Files, key: str) -> dict[str, Any]:
    num_bytes = files.num_bytes(key)
    if num_bytes > MAX_JSON_BYTES:
        raise BaseModelError(f"{files.uri}/{key} has {num_bytes} bytes; a JSON file of a checkpoint has at most 50 MB")
    try:
        value = json.loads(files.get(key))
    except (ValueError, RecursionError) as error:
        raise BaseModelError(f"{files.uri}/{key} is not valid JSON: {error}; upload it again") from None
    if not isinstance(value, dict):
        raise BaseModelError(f"{files.uri}/{key} holds no JSON object; upload it again")
    return value
