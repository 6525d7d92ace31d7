"""BaseModelSpec: the geometry of a base model, from its config.json and (where there are any) safetensors headers.

Which linear modules there are, and their shapes, is what the model's own class says (`skeleton`); headers are compared
with it. Importing this module imports no torch; a spec that is made anew does.

    spec = read_spec(open_objects("/models/llama"))
    spec.modules[0]       # LinearModule(name="model.layers.0.self_attn.q_proj", role="q", layer=0, d_in=..., d_out=...)
"""

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from pydantic import Field

from oral_ray.bases.checkpoint import OF_DIFFUSERS, OF_TRANSFORMERS, read_config, read_tensors
from oral_ray.bases.headers import Files, TensorEntry
from oral_ray.bases.pipeline import denoiser_prefix
from oral_ray.bases.roles import layers_of, role_of
from oral_ray.bases.sizes import MAX_WIDTH
from oral_ray.bases.skeleton import Skeleton, build_skeleton
from oral_ray.config import Record, fingerprint
from oral_ray.errors import BaseModelError

_OUTSIDE = "stands outside the layers, as heads, poolers and embeddings do, where nothing is adapted"


class LinearModule(Record):
    """One linear module: W is [d_out, d_in]; `transposed` where the checkpoint stores [d_in, d_out] (Conv1D)."""

    name: str
    role: str
    layer: int
    d_in: int
    d_out: int
    transposed: bool = False


class BaseModelSpec(Record):
    """What a base model looks like, without its weights.

    `kind` is the name of its kind of base: one of `oral_ray.modalities`, which is the only room that asks for it.
    `modules` are the linear modules inside its layers. `no_targets` says of names that a target must not mean why (a
    pooler, fused experts, a norm): each that shares the end of its name with a module, and one example of every other.
    """

    model_type: str
    kind: str
    hidden_size: int
    num_layers: int
    modules: tuple[LinearModule, ...]
    no_targets: dict[str, str] = Field(default={})

    @cached_property
    def digest(self) -> str:
        """The architecture digest: equal for all versions of one architecture."""
        return fingerprint(self.model_dump(mode="json", exclude={"no_targets"}))

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def metadata(self) -> str:
        """The sentence that describes the architecture to the generator (ORAL section 3.2)."""
        from oral_ray.modalities import MODALITIES

        roles = ", ".join(dict.fromkeys(module.role for module in self.modules))
        what = MODALITIES[self.kind].noun if self.kind in MODALITIES else "model"
        return (
            f"{self.model_type} {self.kind} {what} with {self.num_layers} layers, "
            f"hidden size {self.hidden_size} and linear modules {roles}."
        )


def read_spec(files: Files, prefix: str = "") -> BaseModelSpec:
    """The spec of the checkpoint under a prefix; BaseModelError when config and headers disagree or are not enough."""
    own = denoiser_prefix(files, prefix)
    return build_spec(read_config(files, own), layout_tensors(files, prefix), f"{files.uri}/{own}".rstrip("/"))


def layout_tensors(files: Files, prefix: str = "") -> dict[str, TensorEntry]:
    """The tensors whose modules are a base's layout: those of a checkpoint, or of the denoiser of a pipeline."""
    own = denoiser_prefix(files, prefix)
    return read_tensors(files, own, OF_TRANSFORMERS if own == prefix else OF_DIFFUSERS)


def build_spec(config: Mapping[str, Any], tensors: Mapping[str, TensorEntry], where: str) -> BaseModelSpec:
    """Build a spec from a config and (possibly no) tensors."""
    model_type = str(config["model_type"])
    skeleton = build_skeleton(config, where)
    modules, no_targets = _modules(skeleton)
    if not modules:
        raise BaseModelError(
            f"{where}/config.json describes a {model_type} without linear modules in layers; nothing to adapt"
        )
    if widest := next((module for module in modules if max(module.d_in, module.d_out) > MAX_WIDTH), None):
        raise BaseModelError(
            f"{where}/config.json makes {widest.name} {widest.d_out} x {widest.d_in}; check its numbers"
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
        kind=skeleton.kind,
        hidden_size=skeleton.hidden_size or _width(modules),
        num_layers=1 + max(module.layer for module in modules),
        modules=modules,
        no_targets=no_targets,
    )


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


def _modules(skeleton: Skeleton) -> tuple[tuple[LinearModule, ...], dict[str, str]]:
    """The linear modules in layers, and what is said of everything else (`BaseModelSpec.no_targets`)."""
    modules: list[LinearModule] = []
    others: dict[str, str] = dict(skeleton.rest)
    layers = layers_of([linear.name for linear in skeleton.linears])
    for linear, layer in zip(skeleton.linears, layers, strict=True):
        if layer is None:
            others[linear.name] = _OUTSIDE
            continue
        modules.append(
            LinearModule(
                name=linear.name, role=role_of(linear.name), layer=layer, d_in=linear.d_in, d_out=linear.d_out,
                transposed=linear.transposed,
            )
        )  # fmt: skip
    endings = {shortest_ending(module.name) for module in modules}
    examples = {
        re.sub(r"\d+", "0", name): name for name in reversed(others)
    }  # the first of those that a number sets apart
    kept = {*examples.values(), *(name for name in others if shortest_ending(name) in endings)}
    return tuple(modules), {name: why for name, why in others.items() if name in kept}


def shortest_ending(name: str) -> str:
    """The shortest ending of a module's name that says something: `q_proj`, and `to_out.0` where a number is last."""
    parts = name.split(".")
    return ".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:])


def _width(modules: tuple[LinearModule, ...]) -> int:
    """What the last layer's attention reads, for a config that gives no hidden size."""
    last = [module for module in modules if module.layer == modules[-1].layer]
    return next((module.d_in for module in last if module.role in ("q", "qkv")), last[0].d_in)
