"""The sizes that a config.json gives, looked at before anything is built. No torch.

With a wrong one a class may build without end, or make do with it.

    check_sizes(config, "s3://bucket/bases/v1")       # BaseModelError with the key and what it may be
"""

from collections.abc import Mapping
from typing import Any

from oral_ray.errors import BaseModelError

MAX_LAYERS, MAX_WIDTH = 1000, 10_000_000
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


def check_sizes(config: Mapping[str, Any], where: str, path: str = "") -> None:
    """BaseModelError for a size that is no whole number, or that no model has; `path` names what the keys stand in."""
    for key, value in config.items():
        name = f"{path}{key}"
        if isinstance(value, Mapping):
            check_sizes(value, where, f"{name}.")
        elif key in _LAYERS | _WIDTHS:
            limit = MAX_LAYERS if key in _LAYERS else MAX_WIDTH
            for number in value if isinstance(value, list) else [value]:
                if number is not None and (type(number) is not int or not 0 < number <= limit):
                    raise BaseModelError(
                        f"{where}/config.json gives {name}={repr(number)[:60]}; it has to be a whole number from 1 to "
                        f"{limit:,}"
                    )
