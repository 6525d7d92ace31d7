"""What the name of a module says: its role, and its layer counted through all towers."""

import pytest

from oral_ray.bases.roles import ROLE_OF, ROLES, layers_of, role_of


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("model.layers.0.self_attn.q_proj", "q"),
        ("encoder.layer.0.attention.self.value", "v"),
        ("encoder.block.0.layer.0.SelfAttention.o", "o"),
        ("encoder.block.0.layer.1.DenseReluDense.wo", "down"),
        ("encoder.layer.0.attention.output.dense", "o"),
        ("encoder.layer.0.crossattention.output.dense", "o"),
        ("encoder.layer.0.output.dense", "down"),
        ("encoder.layer.0.intermediate.dense", "up"),
        ("transformer.h.0.self_attention.dense", "o"),
        ("transformer.h.0.attn.c_proj", "o"),
        ("transformer.h.0.mlp.c_proj", "down"),
        ("transformer.h.0.attn.c_attn", "qkv"),
        ("model.decoder.layers.0.self_attn.out_proj", "o"),
        ("backbone.layers.0.mixer.out_proj", "other"),  # of a state-space layer, not of attention
        ("mid_block.attentions.0.transformer_blocks.0.attn2.to_q", "q"),
        ("mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "other"),
        ("mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0", "o"),
        ("mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0", "other"),
        ("mid_block.attentions.0.to_out.0", "o"),
        ("model.layers.0.shared_mlp.input_linear", "up"),  # granitemoehybrid: gate and up in one
        ("model.layers.0.shared_mlp.output_linear", "down"),
        ("model.layers.0.self_attention.kv_proj", "qkv"),  # jetmoe: keys and values in one
        ("pooler.dense", "other"),
        ("some.thing.novel", "other"),
    ],
)
def test_the_longest_known_ending_of_a_name_is_its_role(name: str, role: str):
    assert role_of(name) == role


def test_every_role_of_the_table_is_one_that_the_generator_knows():
    assert {*ROLE_OF.values()} == {*ROLES}


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ([0, 0, 1], ["model.layers.4.attn.q", "model.layers.4.mlp.experts.7.up", "model.layers.9.attn.q"]),
        ([0, 1, 2], ["visual.blocks.0.qkv", "visual.blocks.1.qkv", "model.layers.0.q_proj"]),
        ([None, 0, None], ["embeddings.project", "encoder.layer.0.query", "pooler.dense"]),
        ([0, 0, None], ["encoder.block.0.layer.0.q", "encoder.block.0.layer.1.wi", "visual.merger.mlp.0"]),
        ([0], ["encoder.albert_layer_groups.0.albert_layers.0.attention.query"]),
    ],
)
def test_layers_are_counted_through_all_towers(layers: list[int | None], names: list[str]):
    assert layers_of(names) == layers


def test_a_layer_of_a_unet_is_a_transformer_block_and_its_stage_belongs_to_the_first():
    names = [
        "down_blocks.0.resnets.0.time_emb_proj",
        "down_blocks.0.attentions.0.proj_in",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        "down_blocks.0.attentions.0.transformer_blocks.1.attn1.to_out.0",
        "down_blocks.0.attentions.0.proj_out",
        "mid_block.attentions.0.to_q",
        "up_blocks.0.attentions.1.transformer_blocks.0.ff.net.2",
    ]
    assert layers_of(names) == [None, 0, 0, 1, 0, 2, 3]
