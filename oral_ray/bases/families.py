"""Which linear modules a model type has, as data: one row a module, sizes computed from config.json.

A role (`q`, `v`, `up`, ...) is the common name of a module over all families; the generator knows roles, not names.
Names are those of the class that is loaded: `AutoModel` for encoders, `AutoModelForCausalLM` for causal models,
`AutoModelForImageTextToText` for image-text ones, diffusers' `UNet2DConditionModel` (whose config names its class, not a
model type). A model is a list of towers, layers of one shape each, in the order in which data passes them: one for most,
vision then language for image-text models, one a cross-attention block for a UNet. A new family is one entry of FAMILIES;
`tests/test_bases_spec.py` compares every entry with transformers' own model, `tests/test_bench_layouts.py` real configs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Sizes = Mapping[str, int]
Row = tuple[str, str, str, str]  # role, name below a layer, d_in, d_out

ROLES = ("q", "k", "v", "o", "qkv", "gate", "up", "down", "other")


Kind = Literal["encoder", "causal", "image-text", "unet"]


@dataclass(frozen=True, slots=True)
class Tower:
    """Layers of one shape: `prefix` is the path of a layer with `{i}`, `sizes` has `layers`, `hidden` and what rows name.

    `transposed` marks Conv1D weights.
    """

    prefix: str
    rows: tuple[Row, ...]
    sizes: Sizes
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """One model type: what kind of model it is, and its towers out of a config."""

    kind: Kind
    towers: Callable[[Mapping[str, Any]], Sequence[Tower]]


def _llama_sizes(config: Mapping[str, Any]) -> Sizes:
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    return {
        "hidden": config["hidden_size"],
        "ffn": config["intermediate_size"],
        "q": heads * head_dim,
        "kv": (config.get("num_key_value_heads") or heads) * head_dim,
        "layers": config["num_hidden_layers"],
    }


def _bert_sizes(config: Mapping[str, Any]) -> Sizes:
    return {
        "hidden": config["hidden_size"],
        "ffn": config["intermediate_size"],
        "layers": config["num_hidden_layers"],
    }


def _gpt2_sizes(config: Mapping[str, Any]) -> Sizes:
    hidden = config["n_embd"]
    return {
        "hidden": hidden,
        "qkv": 3 * hidden,
        "ffn": config.get("n_inner") or 4 * hidden,
        "layers": config["n_layer"],
    }


_LLAMA_ROWS: tuple[Row, ...] = (
    ("q", "self_attn.q_proj", "hidden", "q"),
    ("k", "self_attn.k_proj", "hidden", "kv"),
    ("v", "self_attn.v_proj", "hidden", "kv"),
    ("o", "self_attn.o_proj", "q", "hidden"),
    ("gate", "mlp.gate_proj", "hidden", "ffn"),
    ("up", "mlp.up_proj", "hidden", "ffn"),
    ("down", "mlp.down_proj", "ffn", "hidden"),
)
_BERT_ROWS: tuple[Row, ...] = (
    ("q", "attention.self.query", "hidden", "hidden"),
    ("k", "attention.self.key", "hidden", "hidden"),
    ("v", "attention.self.value", "hidden", "hidden"),
    ("o", "attention.output.dense", "hidden", "hidden"),
    ("up", "intermediate.dense", "hidden", "ffn"),
    ("down", "output.dense", "ffn", "hidden"),
)
_GPT2_ROWS: tuple[Row, ...] = (
    ("qkv", "attn.c_attn", "hidden", "qkv"),
    ("o", "attn.c_proj", "hidden", "hidden"),
    ("up", "mlp.c_fc", "hidden", "ffn"),
    ("down", "mlp.c_proj", "ffn", "hidden"),
)

_VISION_ROWS: tuple[Row, ...] = (
    ("qkv", "attn.qkv", "hidden", "qkv"),
    ("o", "attn.proj", "hidden", "hidden"),
    ("up", "mlp.fc1", "hidden", "ffn"),
    ("down", "mlp.fc2", "ffn", "hidden"),
)
# Cross-attention has the roles; self-attention is listed so that no name of a target means it too.
_CROSS_ROWS: tuple[Row, ...] = (
    ("q", "attn2.to_q", "hidden", "hidden"),
    ("k", "attn2.to_k", "context", "hidden"),
    ("v", "attn2.to_v", "context", "hidden"),
    ("o", "attn2.to_out.0", "hidden", "hidden"),
    *(("other", f"attn1.to_{name}", "hidden", "hidden") for name in ("q", "k", "v", "out.0")),
)


def _llama(config: Mapping[str, Any]) -> list[Tower]:
    return [Tower("model.layers.{i}.", _LLAMA_ROWS, _llama_sizes(config))]


def _bert(config: Mapping[str, Any]) -> list[Tower]:
    return [Tower("encoder.layer.{i}.", _BERT_ROWS, _bert_sizes(config))]


def _gpt2(config: Mapping[str, Any]) -> list[Tower]:
    return [Tower("transformer.h.{i}.", _GPT2_ROWS, _gpt2_sizes(config), transposed=True)]


def _qwen2_vl(config: Mapping[str, Any]) -> list[Tower]:
    """Published configs are flat or nest the language part under `text_config`; the vision part is always nested."""
    vision = config["vision_config"]
    hidden = vision["embed_dim"]
    ffn = int(hidden * vision.get("mlp_ratio", 4))
    sizes = {"hidden": hidden, "qkv": 3 * hidden, "ffn": ffn, "layers": vision["depth"]}
    language = _llama_sizes(config.get("text_config") or config)
    return [
        Tower("model.visual.blocks.{i}.", _VISION_ROWS, sizes),
        Tower("model.language_model.layers.{i}.", _LLAMA_ROWS, language),
    ]


def _unet(config: Mapping[str, Any]) -> list[Tower]:
    """Blocks with cross-attention on the way down, in the middle, on the way up (there one more each)."""
    channels, num = config["block_out_channels"], config["layers_per_block"]
    blocks = [
        *(("down_blocks.{}.", i, channels[i], num) for i in _crossed(config["down_block_types"])),
        ("mid_block.", 0, channels[-1], 1),
        *(("up_blocks.{}.", i, channels[-1 - i], num + 1) for i in _crossed(config["up_block_types"])),
    ]
    return [
        Tower(
            f"{name.format(i)}attentions.{{i}}.transformer_blocks.0.",
            _CROSS_ROWS,
            {"hidden": width, "context": config["cross_attention_dim"], "layers": count},
        )
        for name, i, width, count in blocks
    ]


def _crossed(types: Sequence[str]) -> list[int]:
    return [i for i, name in enumerate(types) if name.startswith("CrossAttn")]


_LLAMA, _BERT = Family("causal", _llama), Family("encoder", _bert)
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "smollm3"), _LLAMA),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra"), _BERT),
    "gpt2": Family("causal", _gpt2),
    "qwen2_vl": Family("image-text", _qwen2_vl),
    "UNet2DConditionModel": Family("unet", _unet),
}
ROLE_OF_LEAF: dict[str, str] = {
    row[1].rpartition(".")[2]: row[0] for rows in (_LLAMA_ROWS, _BERT_ROWS, _GPT2_ROWS) for row in rows
    if "dense" not in row[1]
}  # fmt: skip
"""The role of a module by the last part of its name, where that part alone says it."""
