"""AdapterLayout: geometry from shapes alone, equal to what peft makes."""

from pathlib import Path

import pytest
from factory_fixtures import ALL_ROLES, base_of, layout_of
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from transformers import GPT2Config, GPT2LMHeadModel

from oral_ray.adapters.layout import AdapterLayout
from oral_ray.bases.spec import build_spec, read_config
from oral_ray.config import LoraSettings
from oral_ray.errors import LayoutError
from oral_ray.objects import FileObjects

BASES = ("tiny_bert", "tiny_llama")


@pytest.fixture(params=BASES)
def base(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def peft_shapes(model, layout: AdapterLayout) -> dict[str, tuple[int, ...]]:
    config = LoraConfig(
        r=layout.lora.r, target_modules=list(layout.target_modules), fan_in_fan_out=layout.fan_in_fan_out
    )
    adapted = PeftModel(model, config)
    shapes = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(adapted).items()}
    adapted.unload()
    return shapes


@pytest.mark.parametrize("r", [1, 4])
@pytest.mark.parametrize("targets", [("q", "v"), ("k", "up"), ALL_ROLES, ("down",)])
def test_layout_has_exactly_the_tensors_that_peft_makes(base: Path, r: int, targets: tuple[str, ...]) -> None:
    layout = layout_of(base, r, targets)
    shapes = peft_shapes(base_of(base).model, layout)
    assert {slot.key: slot.shape(r) for slot in layout.slots} == shapes
    assert layout.num_parameters == sum(rows * columns for rows, columns in shapes.values())


def test_grouped_queries_make_keys_and_values_narrower(tiny_llama: Path) -> None:
    shapes = {slot.key: slot.shape(4) for slot in layout_of(tiny_llama, 4, ("q", "k", "v")).slots}
    attention = "base_model.model.model.layers.0.self_attn"
    assert shapes[f"{attention}.q_proj.lora_B.weight"] == (32, 4)
    assert shapes[f"{attention}.k_proj.lora_B.weight"] == shapes[f"{attention}.v_proj.lora_B.weight"] == (16, 4)


def test_layout_needs_no_weights(base: Path) -> None:
    spec = build_spec(read_config(FileObjects(base)), {}, "nowhere")
    assert AdapterLayout.of(spec, LoraSettings(r=2), 24) == layout_of(base, 2)


@pytest.mark.parametrize("token_dim", [5, 16, 32, 1000])
@pytest.mark.parametrize("r", [1, 3])
def test_tokens_of_slots_tile_the_layout(base: Path, token_dim: int, r: int) -> None:
    layout = layout_of(base, r, ALL_ROLES, token_dim)
    owner = [
        slot.key
        for slot in layout.slots
        for _ in range(slot.first_token, slot.first_token + layout.lora.r * slot.chunks)
    ]
    starts = [slot.first_token for slot in layout.slots]
    assert starts[0] == 0 and starts == sorted(starts)
    assert len(owner) == layout.num_tokens == layout.slots[-1].first_token + r * layout.slots[-1].chunks
    assert all((slot.chunks - 1) * token_dim < slot.width <= slot.chunks * token_dim for slot in layout.slots)


def test_depth_runs_from_first_to_last_layer(base: Path) -> None:
    assert {slot.depth for slot in layout_of(base).slots} == {0.0, 1.0}


def test_leaf_names_and_roles_name_the_same_modules(tiny_llama: Path) -> None:
    by_role, by_leaf = layout_of(tiny_llama, targets=("q", "v")), layout_of(tiny_llama, targets=("q_proj", "v_proj"))
    assert by_role.slots == by_leaf.slots and by_role.target_modules == by_leaf.target_modules == ("q_proj", "v_proj")


def test_digest_names_architecture_rank_targets_and_token_size(tiny_bert: Path, tiny_llama: Path) -> None:
    layouts = [
        layout_of(tiny_bert),
        layout_of(tiny_llama),
        layout_of(tiny_bert, r=3),
        layout_of(tiny_bert, targets=("q",)),
        layout_of(tiny_bert, token_dim=25),
    ]
    assert len({layout.digest for layout in layouts}) == len(layouts)
    assert layout_of(tiny_bert).digest == layouts[0].digest and hash(layout_of(tiny_bert)) == hash(layouts[0])


def test_a_rank_above_the_width_of_keys_and_values_is_taken_as_peft_takes_it(tiny_llama: Path) -> None:
    layout = layout_of(tiny_llama, 24, ("q", "v"))  # v has 16 outputs
    shapes = peft_shapes(base_of(tiny_llama).model, layout)
    assert {slot.key: slot.shape(24) for slot in layout.slots} == shapes
    assert layout.max_rank == 32


def test_unknown_target_is_refused_with_the_known_ones(tiny_bert: Path) -> None:
    with pytest.raises(LayoutError, match=r"'nose'.*bert.*roles are q, k, v, o, up, down, names are query, key, value"):
        layout_of(tiny_bert, targets=("q", "nose"))
    with pytest.raises(LayoutError, match="nothing"):
        layout_of(tiny_bert, targets=())


def test_transposed_weights_of_gpt2_give_the_factors_that_peft_makes() -> None:
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50, n_positions=16)
    spec = build_spec(config.to_dict(), {}, "nowhere")
    layout = AdapterLayout.of(spec, LoraSettings(r=2, target_modules=("qkv", "o", "up", "down")), 24)
    assert layout.fan_in_fan_out
    shapes = peft_shapes(GPT2LMHeadModel(config), layout)
    assert {slot.key: slot.shape(2) for slot in layout.slots} == shapes
    assert shapes["base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"] == (96, 2)


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_shapes_that_are_not_the_layouts_are_named(tiny_bert: Path, change: str) -> None:
    layout = layout_of(tiny_bert)
    shapes = {slot.key: slot.shape(2) for slot in layout.slots}
    layout.check_shapes(shapes, "it")
    first = sorted(shapes)[0]
    if change == "missing":
        del shapes[first]
    elif change == "extra":
        first = "zzz"
        shapes[first] = (1, 1)
    else:
        shapes[first] = (3, 32)
    with pytest.raises(LayoutError, match=f"it.*{first}"):
        layout.check_shapes(shapes, "it")
