"""What the name of a linear module says: its role, and which layer of the model it is in.

A role (`q`, `v`, `up`, ...) is the common name of a module over all architectures; the generator knows roles, not names.
A module that fuses several is one module with one role: `qkv`, or `up` for a gate that is fused with the way up. This is
the place for the names of a new model family.
A name that `ROLE_OF` does not have is `other`: it can be adapted under its own name.

    role_of("model.layers.3.self_attn.q_proj")      # "q"
    layers_of(names)                                # the layer of each module, counted through all towers
"""

from collections.abc import Sequence

ROLES = ("q", "k", "v", "o", "qkv", "gate", "up", "down", "other")

_ENDINGS = {
    "q": "q_proj query query_proj to_q q_lin q wq q_b_proj",
    "k": "k_proj key key_proj to_k k_lin k wk",
    "v": "v_proj value value_proj to_v v_lin v wv",
    "o": "o_proj out_proj out_lin o to_out.0 to_out attn.c_proj attn.proj attn.Wo attention.wo attention.dense"
    " attention.output.dense crossattention.output.dense self_attention.dense self_attn.dense",
    "qkv": "qkv qkv_proj c_attn query_key_value Wqkv wqkv self.in_proj self_attention.kv_proj",
    "gate": "gate_proj w1 wi_0",
    # A gate that is fused with the way up (phi3, glm4, granitemoehybrid) counts as the way up.
    "up": "up_proj gate_up_proj c_fc fc1 fc_in lin1 linear1 linear_fc1 w3 wi wi_1 mlp.Wi ffn intermediate.dense"
    " intermediate_dense dense_h_to_4h shared_mlp.input_linear",
    "down": "down_proj mlp.c_proj fc2 fc_out lin2 linear2 linear_fc2 w2 wo mlp.Wo ffn_output output.dense output_dense"
    " dense_4h_to_h shared_mlp.output_linear",
    # A denoiser's blocks attend to the picture (attn1) and to the text (attn2): the roles are those of the text's.
    "other": "attn1.to_q attn1.to_k attn1.to_v attn1.to_out.0 mamba.out_proj mixer.out_proj",
}
ROLE_OF = {ending: role for role, endings in _ENDINGS.items() for ending in endings.split()}
"""The role of a module by the ending of its name; the longest ending that is there decides."""

_LONGEST = max(ending.count(".") for ending in ROLE_OF) + 1
_STAGES = ("down_blocks", "up_blocks", "attentions")  # lists of a UNet that hold layers and are none
_BETWEEN = ("resnets", "downsamplers", "upsamplers", "deepstack_merger_list")  # lists of what stands between layers


def role_of(name: str) -> str:
    """The role of a module, one of `ROLES`."""
    parts = name.split(".")
    endings = (".".join(parts[-length:]) for length in range(min(_LONGEST, len(parts)), 0, -1))
    return next((ROLE_OF[ending] for ending in endings if ending in ROLE_OF), "other")


def layers_of(names: Sequence[str]) -> list[int | None]:
    """The layer of each module, by its name, counted through in the order of the names; None outside all layers.

    Heads, poolers, embeddings and what joins two towers stand outside.
    """
    paths = [_layer_path(name) for name in names]
    inner: dict[str, str] = {}  # a stage -> the first layer in it, which what surrounds the stage's layers belongs to
    for path in paths:
        parts = (path or "").split(".")
        for length in range(2, len(parts)):
            inner.setdefault(".".join(parts[:length]), path or "")
    paths = [path and inner.get(path, path) for path in paths]
    numbers = {path: number for number, path in enumerate(dict.fromkeys(filter(None, paths)))}
    return [None if path is None else numbers[path] for path in paths]


def _layer_path(name: str) -> str | None:
    """The path of the layer that a module is in: `model.layers.3`, `up_blocks.1.attentions.0.transformer_blocks.2`."""
    parts = name.split(".")
    stage = None
    for i in range(1, len(parts) - 1):  # the last part is the module itself
        if not parts[i].isdigit():
            continue
        path, container = ".".join(parts[: i + 1]), parts[i - 1]
        if container in _BETWEEN:
            return None
        if container not in _STAGES:
            return path
        stage = path
    return stage
