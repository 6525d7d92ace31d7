"""Which linear modules a model type has, as data: one row a module, sizes computed from config.json.

A role (`q`, `v`, `up`, ...) is the common name of a module over all families; the generator knows roles, not names.
Names are those of the class that we load: `AutoModel` for encoders, `AutoModelForCausalLM` for causal models. A new
family is one entry of FAMILIES; `tests/test_bases_spec.py` compares every entry with transformers' own model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Sizes = Mapping[str, int]
Row = tuple[str, str, str, str]  # role, name below a layer, d_in, d_out

ROLES = ("q", "k", "v", "o", "qkv", "gate", "up", "down", "other")


@dataclass(frozen=True, slots=True)
class Family:
    """Modules of one model type. `prefix` is the path of a layer with `{i}`; `transposed` marks Conv1D weights."""

    kind: Literal["encoder", "causal"]
    prefix: str
    rows: tuple[Row, ...]
    sizes: Callable[[Mapping[str, Any]], Sizes]
    transposed: bool = False


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

_LLAMA = Family("causal", "model.layers.{i}.", _LLAMA_ROWS, _llama_sizes)
_BERT = Family("encoder", "encoder.layer.{i}.", _BERT_ROWS, _bert_sizes)
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "smollm3"), _LLAMA),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra"), _BERT),
    "gpt2": Family("causal", "transformer.h.{i}.", _GPT2_ROWS, _gpt2_sizes, transposed=True),
}
ROLE_OF_LEAF: dict[str, str] = {
    row[1].rpartition(".")[2]: row[0] for family in FAMILIES.values() for row in family.rows if "dense" not in row[1]
}
