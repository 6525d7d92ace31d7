"""What an adapter_config.json asks for: plain LoRA in any of peft's spellings, or something else, refused by its name.

Plain is what two factors and one number per module say: scale * B @ A added to the weight. Everything that does more
(DoRA, whole modules, biases, other methods, initialisations that change the base) has its own sentence. A key that no
peft known here writes, with a value that is not empty, may change what the adapter computes: it is refused too.

    settings = read_settings(config, "my-adapter")
    settings.r, settings.lora_alpha, settings.target_modules
"""

import difflib
import math
import re
from collections.abc import Iterator
from typing import Any

from pydantic import Field, StrictBool, StrictInt, StrictStr, ValidationError

from oral_ray.config import Record
from oral_ray.errors import ArtifactError

_MERGE = "merge it into the base with peft, or train a plain LoRA"
_BEYOND_LORA: dict[str, tuple[str, str]] = {
    "use_dora": ("is a DoRA, which rescales the base's own weights", _MERGE),
    "modules_to_save": ("replaces whole modules of the base", "train it without modules_to_save, or merge it"),
    "lora_bias": ("has a bias beside every lora_B", "train it with lora_bias=false, or merge it"),
    "alora_invocation_tokens": (
        "is an aLoRA, which is switched on by a sequence of tokens",
        "serve it with peft, or train a plain LoRA",
    ),
    "target_parameters": ("adapts bare parameters, such as fused experts", "target linear modules, or merge it"),
    "trainable_token_indices": ("replaces rows of the embedding", "train it without them, or merge it"),
    "layer_replication": ("is for a base whose layers are repeated", "make that base first, and an adapter for it"),
    "megatron_config": ("is for Megatron's parallel layers", "save it from the unsharded model"),
    "use_qalora": ("is a QA-LoRA, for quantised bases only", _MERGE),
    "velora_config": ("is a VeLoRA", _MERGE),
    "monteclora_config": ("is a MonteCLoRA, which samples its weights", _MERGE),
    "use_bdlora": ("is a BD-LoRA, with block-diagonal factors", _MERGE),
    "arrow_config": ("routes between several adapters (Arrow)", "take the adapters one by one"),
    "kasa_config": ("is a KaSA, which changes the base's own weights", _MERGE),
    "use_qa_lora": ("is a QA-LoRA of ms-swift, for quantised bases only", _MERGE),
    "use_merged_linear": (
        "adapts parts of fused projections in ms-swift's own way",
        "train it without use_merged_linear",
    ),
}
"""Key -> what an adapter is that sets it, and what would help."""

_MAX_RANK = 1_000_000  # beyond every width
_MIN_ALPHA, _MAX_ALPHA = 1e-30, 1e30  # beyond what float32 can hold of a product

_CHANGES_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
_KEEPS_BASE = ("gaussian", "eva", "orthogonal", "mica")
_NO_EFFECT = frozenset({
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "inference_mode",
    "loftq_config", "lora_dtype", "lora_ga_config", "lorap_emb_lr", "lorap_lr_ratio", "megatron_core", "peft_version",
    "qalora_group_size", "revision", "runtime_config",
})  # fmt: skip
"""Keys that do not change what a plain LoRA computes: peft's, and ms-swift's for the learning rates and the dtype."""


class LoraFileSettings(Record):
    """The keys of a plain LoRA's adapter_config.json; what is not there has peft's default."""

    r: int = Field(default=8, gt=0, le=_MAX_RANK, strict=True)
    lora_alpha: float = Field(default=8.0, gt=0, lt=_MAX_ALPHA, allow_inf_nan=False, strict=True)
    target_modules: StrictStr | list[StrictStr] | None = None
    exclude_modules: StrictStr | list[StrictStr] | None = None
    layers_to_transform: StrictInt | list[StrictInt] | None = None
    layers_pattern: StrictStr | list[StrictStr] | None = None
    rank_pattern: dict[str, Any] = Field(default={})
    alpha_pattern: dict[str, Any] = Field(default={})
    use_rslora: StrictBool | None = False
    fan_in_fan_out: StrictBool | None = False
    lora_dropout: float = Field(default=0.0, ge=0, le=1, strict=True)
    task_type: StrictStr | None = None

    @property
    def is_uniform(self) -> bool:
        """Whether rank, scale and modules can be read from these keys without a base."""
        by_base = (self.exclude_modules, self.layers_to_transform, self.rank_pattern, self.alpha_pattern)
        return isinstance(self.target_modules, list) and bool(self.target_modules) and not any(by_base)

    @property
    def effective_alpha(self) -> float:
        """The alpha of a LoRA of scale alpha / r that computes the same: rank-stabilised ones have alpha / sqrt(r)."""
        return self.lora_alpha * (math.sqrt(self.r) if self.use_rslora else 1.0)

    def rank_and_scale(self, module: str) -> tuple[int, float]:
        """The rank of a module and what B @ A is multiplied by: the first pattern that matches its name decides."""
        r = int(_matched(self.rank_pattern, module, self.r))
        alpha = float(_matched(self.alpha_pattern, module, self.lora_alpha))
        return r, alpha / (math.sqrt(r) if self.use_rslora else r)


def read_settings(config: dict[str, Any], name: str) -> LoraFileSettings:
    """The settings of a plain LoRA; ArtifactError, one sentence, for everything else."""
    where = f"adapter {name}: adapter_config.json"
    if "fine_tune_type" in config and "peft_type" not in config:
        raise ArtifactError(f"adapter {name} is one of MLX (fine_tune_type); convert it to peft's format")
    _check_type(config.get("peft_type"), name)
    if config.get("swift_type", "LORA") != "LORA":
        raise ArtifactError(
            f"adapter {name} is no plain LoRA: ms-swift calls it {_shown(config['swift_type'])} (swift_type); "
            "merge it into the base, or train a LoRA"
        )
    for sentence in _beyond_lora(config):
        raise ArtifactError(f"adapter {name} {sentence}")
    known = LoraFileSettings.model_fields
    for key, value in config.items():
        if key not in known and key not in _NO_EFFECT and key not in _SPOKEN_OF and value:
            near = difflib.get_close_matches(key.lower(), [*known, *_NO_EFFECT, *_SPOKEN_OF], 1, 0.85)
            remedy = f"is {near[0]!r} meant?" if near else "remove the key if it does not, or save it as a plain LoRA"
            raise ArtifactError(
                f"{where} has {_shown(key)}: {_shown(value)}, which the peft known here does not have and which may "
                f"change what the adapter computes; {remedy}"
            )
    try:
        settings = LoraFileSettings(**{key: value for key, value in config.items() if key in known})
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise ArtifactError(
            f"{where} says {key}={_shown(config[key])}: {_lower(first['msg'])}; correct it, or train the adapter again"
        ) from None
    if settings.lora_alpha <= _MIN_ALPHA:
        raise ArtifactError(
            f"{where} says lora_alpha={settings.lora_alpha:g}; it must be from {_MIN_ALPHA:g} to {_MAX_ALPHA:g}, train the "
            "adapter again"
        )
    if settings.target_modules is not None and not settings.target_modules:
        raise ArtifactError(f"{where} names no target_modules ({settings.target_modules!r}); name what was adapted")
    _check_patterns(settings, where)
    return settings


_SPOKEN_OF = frozenset({"peft_type", "swift_type", "bias", "init_lora_weights", *_BEYOND_LORA})


def _check_type(peft_type: Any, name: str) -> None:
    if peft_type == "LORA":
        return
    if peft_type is None:
        raise ArtifactError(
            f"adapter {name}: adapter_config.json names no peft_type, peft cannot load it; "
            'add "peft_type": "LORA" if it is a LoRA'
        )
    if isinstance(peft_type, str) and peft_type.upper() == "LORA":
        raise ArtifactError(f"adapter {name}: peft_type is {peft_type!r}, peft knows it as 'LORA' only; correct it")
    raise ArtifactError(
        f"adapter {name} is no plain LoRA: its peft_type is {_shown(peft_type)}; merge it into the base, or train a LoRA"
    )


def _beyond_lora(config: dict[str, Any]) -> Iterator[str]:
    """What makes it more than a plain LoRA, as the end of a sentence."""
    for key, (what, remedy) in _BEYOND_LORA.items():
        value = config.get(key)
        # for peft an empty mapping is one with its defaults, and an empty list of tokens is a list
        if value or isinstance(value, dict) or (key == "trainable_token_indices" and value is not None):
            yield f"{what} ({key}: {_shown(config[key])}); {remedy}"
    bias = config.get("bias", "none")
    if bias in ("all", "lora_only"):
        yield f"is no plain LoRA: it trains biases of the base (bias: {bias!r}); train it with bias 'none', or merge it"
    elif bias != "none":
        yield f"has bias: {_shown(bias)}, and peft knows 'none', 'all' and 'lora_only'; correct it in adapter_config.json"
    init = config.get("init_lora_weights", True)
    if not init or init is True:
        return
    lowered = init.lower() if isinstance(init, str) else ""
    if lowered.startswith(_CHANGES_BASE):
        yield (
            f"was started with init_lora_weights={init!r}, which takes its factors out of the base's own weights; save it "
            "with peft's path_initial_model_for_weight_conversion, which makes it a plain LoRA"
        )
    elif lowered not in _KEEPS_BASE:
        yield (
            f"has init_lora_weights={_shown(init)}, which the peft known here does not have and which may mean another "
            f"base; set it to true if the base was not changed (these do not: {', '.join(_KEEPS_BASE)})"
        )


def _check_patterns(settings: LoraFileSettings, where: str) -> None:
    """Ranks and alphas by pattern are possible values, and every regular expression is one."""
    for module, r in settings.rank_pattern.items():
        if not isinstance(r, int) or isinstance(r, bool) or not 1 <= r <= _MAX_RANK:
            raise ArtifactError(
                f"{where} says rank {_shown(r)} for {module!r} (rank_pattern); a rank is 1 to {_MAX_RANK}"
            )
    for module, alpha in settings.alpha_pattern.items():
        if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not _MIN_ALPHA < alpha < _MAX_ALPHA:
            raise ArtifactError(
                f"{where} says alpha {_shown(alpha)} for {module!r} (alpha_pattern); it must be from "
                f"{_MIN_ALPHA:g} to {_MAX_ALPHA:g}"
            )
    texts = (settings.target_modules, settings.exclude_modules)
    patterns = [*settings.rank_pattern, *settings.alpha_pattern]
    patterns += [text for text in texts if isinstance(text, str)]
    layers = settings.layers_pattern or []
    patterns += [layers] if isinstance(layers, str) else layers
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise ArtifactError(f"{where}: {pattern[:80]!r} is no regular expression: {error}; correct it") from None


def _matched(patterns: dict[str, Any], module: str, default: float) -> float:
    """The value of the first pattern that matches the end of a module's name, as peft matches it."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
