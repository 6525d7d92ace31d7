"""The one intake for adapters: whatever peft can read in, on its base, as a plain adapter that computes the same.

A plain adapter has float32 tensors by peft's names, one rank, one alpha, and a configuration that names exactly the
modules that it adapts: what `build_artifact` makes. Rank-stabilised scales go into alpha, smaller ranks are padded with
zeros, scales that differ go into lora_B. What cannot be said so is refused by its name, in one sentence.

    artifact = take(base, read_folder(Path("my-adapter")))

    plain_factors(read_folder(Path("my-adapter")), "my-adapter")      # without a base: modules as the file names them
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oral_ray.adapters.artifact import AdapterArtifact
from oral_ray.adapters.gauge import Factors
from oral_ray.adapters.layout import AdapterLayout
from oral_ray.adapters.matching import (
    AdaptedModule,
    adapted_modules,
    check_peft_reads,
    find_places,
    key_of,
    paired_places,
    shortest_names,
)
from oral_ray.adapters.patterns import check_patterns_end
from oral_ray.adapters.settings import LoraFileSettings, read_settings
from oral_ray.bases.loading import LoadedBase
from oral_ray.errors import ArtifactError

_PLAIN_KEYS = frozenset({
    "peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "target_modules", "lora_dropout", "bias",
    "fan_in_fan_out", "inference_mode",
})  # fmt: skip


_FLOATS = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Intake:
    """A plain adapter, and the tensors it came from by the names under which peft finds them."""

    artifact: AdapterArtifact
    named: dict[str, Tensor]
    is_renamed: bool


@dataclass(frozen=True, slots=True)
class PlainFactors:
    """Factors of one rank and one alpha by module: the change of a weight is alpha / r * B @ A."""

    r: int
    lora_alpha: float
    factors: Factors


def take(base: LoadedBase, artifact: AdapterArtifact, name: str = "") -> AdapterArtifact:
    """The plain adapter that changes this base as peft would with `artifact`; ArtifactError or LayoutError if none does.

    `name` is what a refusal calls it, its digest where nothing is given. A plain adapter comes back as it is.
    """
    return take_in(base, artifact, name).artifact


def take_in(base: LoadedBase, artifact: AdapterArtifact, name: str = "") -> Intake:
    """`take`, with what a comparison with peft needs."""
    if _is_plain(artifact):
        artifact.check(_layout(base, artifact), name)
        return Intake(artifact, artifact.tensors, is_renamed=False)
    name = name or artifact.digest[:12]
    settings = read_settings(artifact.config, name)
    check_peft_reads(artifact.config, name)
    modules = [path for path, _ in base.model.named_modules() if path]
    check_patterns_end(settings, modules, name)
    adapted = adapted_modules(base.model, settings, name, base.record.id)
    _check_layout_knows(base, adapted, name)
    places = find_places(artifact.tensors.keys(), adapted, set(modules), name, base.record.id)
    _check_values(artifact.tensors, name)
    named = {key_of(*place): artifact.tensors[key] for key, place in places.items()}
    plain = _uniform(settings, _pairs(named, adapted), name, base.record.id, adapted)
    targets = shortest_names(adapted, modules, {module.role for module in base.record.spec.modules})
    taken = AdapterArtifact(_config(artifact.config, base, plain, targets), _tensors(plain), artifact.provenance)
    taken.check(_layout(base, taken), name)
    return Intake(taken, named, is_renamed=named.keys() != artifact.tensors.keys())


def plain_factors(artifact: AdapterArtifact, name: str = "") -> PlainFactors:
    """Factors of one rank and alpha from the file alone: modules are those that its tensors name."""
    name = name or artifact.digest[:12]
    settings = read_settings(artifact.config, name)
    places = paired_places(artifact.tensors.keys(), name)
    _check_values(artifact.tensors, name)
    named = {key_of(*place): artifact.tensors[key] for key, place in places.items()}
    modules = dict.fromkeys(module for module, _ in places.values())
    check_patterns_end(settings, modules, name)
    return _uniform(settings, _pairs(named, modules), name, "", {})


def _is_plain(artifact: AdapterArtifact) -> bool:
    """Whether it is one of `build_artifact`: peft reads it as it stands, a layout says the rest."""
    targets = artifact.config.get("target_modules")
    return (
        artifact.config.keys() == _PLAIN_KEYS
        and artifact.config["peft_type"] == "LORA"
        and artifact.config["bias"] == "none"
        and artifact.config["task_type"] is None
        and isinstance(targets, list)
        and all(tensor.dtype == torch.float32 for tensor in artifact.tensors.values())
    )


def _layout(base: LoadedBase, artifact: AdapterArtifact) -> AdapterLayout:
    return AdapterLayout.of(base.record.spec, artifact.lora, token_dim=base.record.spec.hidden_size)


def _check_values(tensors: Mapping[str, Tensor], name: str) -> None:
    for key, tensor in sorted(tensors.items()):
        if tensor.dtype not in _FLOATS:
            raise ArtifactError(
                f"adapter {name}: {key} is stored as {str(tensor.dtype).removeprefix('torch.')}, no type of a LoRA's "
                "tensors; convert it to float32"
            )
        if tensor.dim() != 2:
            raise ArtifactError(
                f"adapter {name}: {key!r} has shape {tuple(tensor.shape)}, a factor of a linear module has two sizes; "
                "save it again without the other dimensions"
            )
        if not tensor.numel():
            raise ArtifactError(f"adapter {name}: {key!r} is empty, {tuple(tensor.shape)}; train the adapter again")
        if not bool(torch.isfinite(tensor.float()).all()):
            raise ArtifactError(
                f"adapter {name} holds values that are not finite in {key}; discard it and train it again"
            )


def _check_layout_knows(base: LoadedBase, adapted: Mapping[str, AdaptedModule], name: str) -> None:
    known = {module.name for module in base.record.spec.modules}
    if strange := [module for module in adapted if module not in known]:
        roles = ", ".join(dict.fromkeys(module.role for module in base.record.spec.modules))
        raise ArtifactError(
            f"adapter {name} adapts {strange[0]!r}{f' and {len(strange) - 1} more' if strange[1:] else ''}, which is in no "
            f"layer that a layout of {base.record.spec.model_type} describes (roles {roles}); train it without, or merge it"
        )


def _pairs(named: Mapping[str, Tensor], modules: Mapping[str, Any]) -> Factors:
    return {module: (named[key_of(module, "A")].float(), named[key_of(module, "B")].float()) for module in modules}


def _uniform(
    settings: LoraFileSettings, pairs: Factors, name: str, base: str, widths: Mapping[str, AdaptedModule]
) -> PlainFactors:
    """Factors of the largest rank, with the scale of the first module; other scales go into lora_B."""
    scales: dict[str, float] = {}
    source = (
        "in adapter_config.json" if "r" in settings.model_fields_set else "peft's default, adapter_config.json has none"
    )
    for module, (a, b) in pairs.items():
        r, scales[module] = settings.rank_and_scale(module)
        if a.shape[0] != r or b.shape[1] != r:
            if a.shape[1] == r and b.shape[0] == r:
                raise ArtifactError(f"adapter {name}: {_turned(module, a, b, widths.get(module))}")
            raise ArtifactError(
                f"adapter {name}: rank {r} of {module!r} is {source}, its tensors have {a.shape[0]} (lora_A) and "
                f"{b.shape[1]} (lora_B); correct r or rank_pattern to what was trained"
            )
        if width := widths.get(module):
            _check_widths(module, a, b, width, f"adapter {name}", base)
    r = max(a.shape[0] for a, _ in pairs.values())
    first, scale = next(iter(scales.items()))
    factors: Factors = {}
    for module, (a, b) in pairs.items():
        if scales[module] != scale:
            b = _rescaled(
                b, scales[module] / scale, f"{module!r} is {scales[module]:.3g}, that of {first!r} {scale:.3g}", name
            )
        factors[module] = (_padded(a, r, 0), _padded(b, r, 1))
    return PlainFactors(r, scale * r, factors)


def _rescaled(b: Tensor, ratio: float, scales: str, name: str) -> Tensor:
    """lora_B times what a module's scale is of the first one's; ArtifactError where float32 does not hold the product."""
    rescaled = b * ratio
    if not bool(torch.isfinite(rescaled).all()) or not torch.equal(rescaled == 0, b == 0):
        raise ArtifactError(
            f"adapter {name}: alpha / r of {scales}; float32 holds no lora_B that makes up for a difference of "
            f"{ratio:.3g} times; correct alpha_pattern or rank_pattern"
        )
    return rescaled


def _check_widths(module: str, a: Tensor, b: Tensor, width: AdaptedModule, adapter: str, base: str) -> None:
    if (a.shape[1], b.shape[0]) != (width.d_in, width.d_out):
        raise ArtifactError(
            f"{adapter} was made for another architecture: {module!r} maps {a.shape[1]} to {b.shape[0]} values there "
            f"and {width.d_in} to {width.d_out} in base {base!r}; give the base that it was trained on"
        )


def _turned(module: str, a: Tensor, b: Tensor, width: AdaptedModule | None) -> str:
    """What factors are whose rank stands on the wrong side: one is there for the other, or each lies on its side."""
    is_swapped = width is None or (a.shape[0], b.shape[1]) == (width.d_out, width.d_in)
    is_transposed = width is None or (a.shape[0], b.shape[1]) == (width.d_in, width.d_out)
    shapes = f"lora_A {tuple(a.shape)}, lora_B {tuple(b.shape)}"
    if is_swapped and not is_transposed:
        return f"lora_A and lora_B of {module!r} are swapped ({shapes}); give each the other's name"
    if is_transposed and not is_swapped:
        return f"lora_A and lora_B of {module!r} are transposed ({shapes}); transpose both"
    return f"lora_A and lora_B of {module!r} are swapped or transposed ({shapes}); they have to be [r, d_in] and [d_out, r]"


def _padded(factor: Tensor, r: int, dim: int) -> Tensor:
    """The factor with zeros up to rank r, which adds nothing to the product."""
    missing = r - factor.shape[dim]
    if not missing:
        return factor.contiguous()
    shape = [missing if i == dim else size for i, size in enumerate(factor.shape)]
    return torch.cat([factor, factor.new_zeros(shape)], dim).contiguous()


def _config(given: Mapping[str, Any], base: LoadedBase, plain: PlainFactors, targets: list[str]) -> dict[str, Any]:
    named = given.get("base_model_name_or_path")
    transposed = {module.name for module in base.record.spec.modules if module.transposed}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": named if isinstance(named, str) else base.record.id,
        "r": plain.r,
        "lora_alpha": int(plain.lora_alpha) if plain.lora_alpha.is_integer() else plain.lora_alpha,
        "target_modules": targets,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": bool(transposed & plain.factors.keys()),
        "inference_mode": True,
    }


def _tensors(plain: PlainFactors) -> dict[str, Tensor]:
    return {key_of(module, factor): pair[factor == "B"] for module, pair in plain.factors.items() for factor in "AB"}
