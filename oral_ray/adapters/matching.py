"""Which modules of a base an adapter adapts: what peft makes of its targets, and where the tensors of its file belong.

Targets are resolved by peft itself, on a copy of the base without weights. A file's tensors then have to be one pair
for each of these modules. peft passes over a name that it does not know, without a word; here the names that files are
found with (`.default.` inside, `base_model.model.` or one `model.` lost, `language_model.` inserted or missing) are
mapped where the mapping is unique and complete, and everything else is refused by its first odd name.
"""

import dataclasses
import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from oral_ray.adapters.copies import without_weights
from oral_ray.adapters.settings import LoraFileSettings
from oral_ray.errors import ArtifactError

PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<factor>[AB])(\.(?!weight$)[^.]+)?\.weight")
_WRAPPERS = frozenset({"base_model", "model", "language_model", "module", "_orig_mod"})
_NO_FACTOR = (  # part of a tensor's name, what an adapter with it is, what would help
    ("lora_magnitude_vector", "it is a DoRA", "merge it into the base with peft, or train a plain LoRA"),
    ("lora_embedding_", "it adapts the embedding", "target linear modules of the layers only, or merge it"),
    ("modules_to_save", "it replaces whole modules", "train it without modules_to_save, or merge it"),
    ("trainable_tokens", "it replaces rows of the embedding", "train it without them, or merge it"),
    ("lora_B.bias", "lora_B has a bias", "train it with lora_bias=false, or merge it"),
    ("embed_tokens.", "the embedding itself is saved with it, as where tokens were added", "merge it into the base"),
    ("lm_head.", "the output head itself is saved with it, as where tokens were added", "merge it into the base"),
    (".lora_a", "these are MLX's names", "convert it to peft's format"),
    (".lora_down.", "these are kohya's names", "convert it to peft's format"),
    ("hada_", "it is a LoHa", "merge it into the base, or train a LoRA"),
)
_LOOKS_LIKE = (  # a leaf name, whose it is
    ("q_proj", "a Llama-like decoder's"), ("query", "a BERT-like encoder's"), ("c_attn", "a GPT-2-like decoder's"),
    ("query_key_value", "a GPT-NeoX-like decoder's"), ("qkv_proj", "a Phi-like decoder's"), ("q_lin", "DistilBERT's"),
    ("to_q", "a diffusion model's"), ("SelfAttention", "T5's"), ("gate_proj", "a Llama-like decoder's"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class AdaptedModule:
    """The widths of a module that an adapter adapts."""

    d_in: int
    d_out: int


def check_peft_reads(config: Mapping[str, Any], name: str) -> None:
    """ArtifactError where peft itself refuses an adapter_config.json, whatever of it a plain LoRA needs."""
    from peft import LoraConfig  # here and below: importing peft takes longer than reading a thousand adapters

    known = {field.name for field in dataclasses.fields(LoraConfig)} - {"peft_type"}
    given = {key: value for key, value in config.items() if key in known}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            LoraConfig(**{**given, "init_lora_weights": False})
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise ArtifactError(
            f"peft refuses the adapter_config.json of {name}: {reason}; correct it, or save the adapter again"
        ) from None


def adapted_modules(model: nn.Module, settings: LoraFileSettings, name: str, base: str) -> dict[str, AdaptedModule]:
    """The modules of a base that peft would adapt, by name, in the base's order; ArtifactError where it adapts none."""
    from peft import LoraConfig, PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    try:
        config = LoraConfig(
            r=1,  # ranks and scales come from the settings; peft allocates what it initialises
            task_type=settings.task_type,
            target_modules=settings.target_modules,
            exclude_modules=settings.exclude_modules,
            layers_to_transform=settings.layers_to_transform,
            layers_pattern=settings.layers_pattern,
            init_lora_weights=False,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of fan_in_fan_out, which follows the module
            wrapped = PeftModel(without_weights(model), config, low_cpu_mem_usage=True)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        if "not found in the base model" in str(error) or "No modules were targeted" in str(error):
            raise ArtifactError(
                f"adapter {name} adapts {_targets(settings)}, and base {base!r} has no such module; it was made for "
                "another architecture, give the base that it was trained on"
            ) from None
        reason = " ".join(str(error).split())[:300]
        raise ArtifactError(f"peft refuses {name} on {base!r}: {reason}; check its adapter_config.json") from None
    found = {}
    for path, module in wrapped.get_base_model().named_modules():
        if isinstance(module, BaseTunerLayer):
            found[path] = _linear(path, module, name)
    return found


def find_places(
    keys: Collection[str], adapted: Collection[str], modules: Collection[str], name: str, base: str
) -> dict[str, tuple[str, str]]:
    """(module, factor) of each tensor of a file; ArtifactError unless each adapted module has both and none is left over.

    `modules` are the names of all modules of the base: with them a refusal says whose tensors are left over.
    """
    parts = _parsed(keys, name)
    places = {key: place for key, place in parts.items() if key == key_of(*place) and place[0] in modules}
    if not places:
        places = _renamed(parts, adapted)
    if not places:
        first = min(parts)
        raise ArtifactError(
            f"adapter {name}: none of its {len(parts)} tensors fits a module of base {base!r}, first {first!r}; "
            f"they look like {_looks_like(parts)}, give the base that it was trained on"
        )
    _check_complete(parts, places, adapted, modules, name, base)
    return places


def paired_places(keys: Collection[str], name: str) -> dict[str, tuple[str, str]]:
    """(module, factor) of each tensor as the file names it; ArtifactError where a factor is alone or there twice."""
    places = _parsed(keys, name)
    here = list(places.values())
    for key, (module, factor) in places.items():
        if here.count((module, factor)) > 1 or (module, "AB"["BA".index(factor)]) not in here:
            raise ArtifactError(f"adapter {name} is incomplete: {key!r} is not one of a pair; download it again")
    return places


def key_of(module: str, factor: str) -> str:
    """peft's name of a factor's tensor."""
    return f"{PREFIX}{module}.lora_{factor}.weight"


def shortest_names(adapted: Collection[str], modules: Collection[str], roles: Collection[str]) -> list[str]:
    """The shortest dotted endings that name the adapted modules among all modules of a base, and no role."""
    chosen = set(adapted)
    named: dict[str, bool] = {}
    for module in modules:
        for ending in _endings(module):
            named[ending] = named.get(ending, True) and module in chosen
    return sorted({next((e for e in _endings(m) if named[e] and e not in roles), m) for m in adapted})


def _endings(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]


def _linear(path: str, module: Any, name: str) -> AdaptedModule:
    inner = module.get_base_layer()
    if isinstance(inner, nn.Embedding):
        what = "an embedding"
    elif hasattr(module, "parameter_name"):
        what = "a bare parameter, such as fused experts,"
    elif isinstance(inner, nn.Linear) or type(inner).__name__ == "Conv1D":
        return AdaptedModule(int(module.in_features), int(module.out_features))
    else:
        what = f"a {type(inner).__name__}"
    raise ArtifactError(
        f"adapter {name} adapts {path!r}, {what} and no linear module; target linear modules of the layers, or merge it"
    )


def _parsed(keys: Collection[str], name: str) -> dict[str, tuple[str, str]]:
    """Module (as the file names it) and factor of each tensor; ArtifactError for a tensor that is no factor."""
    if not keys:
        raise ArtifactError(f"adapter {name} has no tensors; training saved nothing, or it is not the whole file")
    parts = {}
    for key in sorted(keys):
        if match := _FACTOR.fullmatch(key):
            parts[key] = (match["module"].removeprefix(PREFIX), match["factor"])
            continue
        for part, what, remedy in _NO_FACTOR:
            if part in key:
                raise ArtifactError(f"adapter {name} holds {key!r}: {what}; {remedy}")
        raise ArtifactError(
            f"adapter {name} holds {key!r}, which is no factor of a LoRA and which peft passes over; remove it if it is "
            "not meant, or merge the adapter into the base"
        )
    return parts


def _renamed(parts: Mapping[str, tuple[str, str]], adapted: Collection[str]) -> dict[str, tuple[str, str]]:
    """The places of tensors whose names carry other prefixes; empty where that can be read in two ways."""
    by_bare: dict[str, list[str]] = {}
    for module in adapted:
        by_bare.setdefault(_bare(module), []).append(module)
    places: dict[str, tuple[str, str]] = {}
    for key, (module, factor) in parts.items():
        found = by_bare.get(_bare(module), [])
        if len(found) > 1:
            return {}
        if found:
            places[key] = (found[0], factor)
    return places if len(set(places.values())) == len(places) else {}


def _bare(module: str) -> str:
    """A module's name without the wrappers that stand before the number of its layer."""
    parts = module.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), 0)
    return ".".join([part for part in parts[:number] if part not in _WRAPPERS] + parts[number:])


def _check_complete(
    parts: Mapping[str, tuple[str, str]], places: Mapping[str, tuple[str, str]], adapted: Collection[str],
    modules: Collection[str], name: str, base: str,
) -> None:  # fmt: skip
    here = set(places.values())
    if strange := sorted(set(parts) - set(places)):
        raise ArtifactError(
            f"adapter {name}: {len(strange)} of its {len(parts)} tensors fit no module of base {base!r}, first "
            f"{strange[0]!r}; give the base that it was trained on"
        )
    if extra := sorted(key for key, (module, _) in places.items() if module not in adapted):
        raise ArtifactError(
            f"adapter {name}: {len(extra)} of its tensors belong to modules that its targets leave out and peft passes "
            f"them over, first {extra[0]!r}; correct target_modules, exclude_modules or layers_to_transform"
        )
    if lost := [key_of(module, factor) for module in adapted for factor in "AB" if (module, factor) not in here]:
        raise ArtifactError(
            f"adapter {name} lacks {len(lost)} tensors of the modules that it targets on base {base!r}, first {lost[0]!r}; "
            "peft would leave these modules unchanged: download it again, or correct its targets"
        )


def _looks_like(parts: Mapping[str, tuple[str, str]]) -> str:
    names = {part for module, _ in parts.values() for part in module.split(".")}
    return next((whose for leaf, whose in _LOOKS_LIKE if leaf in names), "those of a model of other names")


def _targets(settings: LoraFileSettings) -> str:
    text = repr(settings.target_modules)
    return text if len(text) <= 200 else f"{text[:197]}..."
