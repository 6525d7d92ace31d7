"""Layouts of 69 public architectures by their configs alone: what peft makes of the models, module by module."""

import json
import re
from functools import cache
from importlib.util import find_spec

import pytest
from torch import nn
from wild.on_meta import LAYOUTS, adapted, differences, model_on_meta, named

from oral_ray.adapters.layout import AdapterLayout
from oral_ray.bases.spec import BaseModelSpec, read_spec
from oral_ray.cli import main
from oral_ray.config import LoraSettings
from oral_ray.errors import BaseModelError, LayoutError
from oral_ray.objects import FileObjects

REFUSED = {  # by transformers itself
    "zamba2-1.2b": r"`num_hidden_layers` \(38\) must be equal to the number of `layer_types` \(54\); compare it with",
}
if find_spec("timm") is None:
    REFUSED["gemma-3n-e2b"] = r"cannot build a gemma3n model from it: .* requires the timm library.* `pip install timm`"
ARCHITECTURES = sorted(path.name for path in LAYOUTS.iterdir() if path.name not in REFUSED)
OUTSIDE = re.compile(  # heads, poolers, embeddings, what joins two towers, the time steps of a denoiser
    r"(lm_head|cls\.|pooler|embed|merger|projector|projection|vision_adapter|\.head|time_|proj_out$|norm_out|encoder_hid)"
)
NOT_ADAPTED = {  # which of their linear modules inside layers peft does not adapt under their names
    "deepseek-v3": "gate_proj up_proj down_proj", "mamba-130m": "out_proj", "mamba2-codestral": "out_proj",
    "nemotron-h-8b": "out_proj", "llama-4-scout": "router",
}  # fmt: skip


@cache
def spec_of(name: str) -> BaseModelSpec:
    return read_spec(FileObjects(LAYOUTS / name))


def layout_of(name: str, targets: tuple[str, ...], r: int = 4) -> AdapterLayout:
    return AdapterLayout.of(spec_of(name), LoraSettings(r=r, target_modules=targets), 1024)


def test_all_69_architectures_are_looked_at():
    assert len(ARCHITECTURES) + len(REFUSED) == 69


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_layout_has_the_modules_and_shapes_that_peft_gives_the_model(name: str):
    spec = spec_of(name)
    model = model_on_meta(LAYOUTS / name, spec.kind)
    roles = {module.role for module in spec.modules}
    assert differences(layout_of(name, tuple(sorted(roles))), model) == []
    for role in sorted(roles):
        wanted = {module.name for module in spec.modules if module.role == role}
        assert named(model, layout_of(name, (role,)).target_modules) == wanted
    linears = {module_name for module_name, module in model.named_modules() if is_linear(module)}
    left_out = linears - {module.name for module in spec.modules}
    leaves = NOT_ADAPTED.get(name, "").split()
    assert {n for n in left_out if not OUTSIDE.search(n)} == {n for n in linears if n.rpartition(".")[2] in leaves}


def is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


@pytest.mark.parametrize(("name", "reason"), REFUSED.items())
def test_what_transformers_does_not_build_is_refused_in_its_own_words(name: str, reason: str):
    with pytest.raises(BaseModelError, match=reason):
        spec_of(name)


@pytest.mark.parametrize(
    ("name", "targets", "num_parameters"),
    [
        ("sdxl-unet", ("to_q", "to_k", "to_v", "to_out.0"), 5_806_080),
        ("mistral-7b-v0.3", ("q", "v"), 1_703_936),
        ("bert2bert-decoder", ("query", "value"), 294_912),
        ("flan-t5-base", ("q", "v"), 442_368),
        ("phi-4", ("qkv_proj",), 2_048_000),
    ],
)
def test_the_number_of_parameters_is_the_one_that_peft_counts(name: str, targets: tuple[str, ...], num_parameters: int):
    layout = layout_of(name, targets)
    found = adapted(model_on_meta(LAYOUTS / name, spec_of(name).kind), layout.target_modules)
    assert layout.num_parameters == sum(rows * columns for rows, columns in found.values()) == num_parameters


def test_every_transformer_block_of_a_unet_is_adapted_and_no_block_that_it_lacks():
    assert len(layout_of("sdxl-unet", ("q", "k", "v", "o")).slots) == 2 * 4 * 70
    assert spec_of("sdxl-unet").num_layers == 70
    small = layout_of("sd-1.5-bk-sdm-small", ("q", "k", "v", "o"))
    assert len(small.slots) == 2 * 4 * 9
    assert not any(slot.module.startswith("mid_block") for slot in small.slots)


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("all-mpnet-base-v2", ["q", "v"]),
        ("camembert-base", ["query", "value"]),
        ("bert2bert-decoder", ["query", "value", "crossattention.output.dense"]),
        ("deberta-v3-base", ["query_proj", "value_proj"]),
        ("distilbert-base", ["q_lin", "v_lin", "lin1"]),
        ("flan-t5-base", ["q", "EncDecAttention.v", "wo"]),
        ("jamba-mini", ["q_proj", "in_proj", "down_proj"]),
        ("mixtral-8x7b", ["self_attn.q_proj", "v_proj"]),
        ("qwen2-vl-7b", ["qkv", "q_proj"]),
        ("llama-3.2-11b-vision", ["cross_attn.q_proj", "model.language_model.layers.3.cross_attn.v_proj"]),
        ("sd-1.5-bk-sdm-small", ["to_q", "to_v", "to_out.0", "ff.net.0.proj"]),
        ("ssd-1b-unet", ["attn2.to_k", "proj_in"]),
        ("sd3-medium-transformer", ["add_q_proj", "to_q", "norm1.linear"]),
    ],
)
def test_names_of_targets_mean_what_they_mean_to_peft(name: str, targets: list[str]):
    layout = layout_of(name, tuple(targets))
    found = adapted(model_on_meta(LAYOUTS / name, spec_of(name).kind), targets)
    assert {slot.key: slot.shape(4) for slot in layout.slots} == found


@pytest.mark.parametrize(
    ("name", "target", "reason"),
    [
        (
            "mixtral-8x7b",
            "down_proj",
            "model.layers.0.mlp.experts.down_proj is one fused weight of all experts, which a",
        ),
        (
            "mixtral-8x7b",
            "up",
            "model.layers.0.mlp.experts.gate_up_proj is one fused weight of all experts, which a plain",
        ),
        (
            "mixtral-8x7b",
            "model.layers.7.mlp.experts.down_proj",
            "experts.down_proj is one fused weight of all experts",
        ),
        ("gpt-oss-20b", "router", "model.layers.0.mlp.router is a GptOssTopKRouter, which is not linear"),
        ("llama-4-scout", "router", "feed_forward.router is a Llama4Router, which is not linear"),
        (
            "deepseek-v3",
            "gate_proj",
            "gate_proj has the name of an expert, which peft takes for the fused experts of a deep",
        ),
        ("mamba-130m", "out_proj", "mixer.out_proj is read by the kernels of mamba without an adapter"),
        ("mamba-130m", "conv1d", "backbone.layers.0.mixer.conv1d is a Conv1d, which is not linear"),
        ("llama-2-7b", "lm_head", "lm_head stands outside the layers, as heads, poolers and embeddings do"),
        ("llama-2-7b", "embed_tokens", "model.embed_tokens is a Embedding, which is not linear"),
        ("roberta-base", "pooler.dense", "pooler.dense stands outside the layers"),
        ("sdxl-unet", "time_emb_proj", "down_blocks.0.resnets.0.time_emb_proj stands outside the layers"),
        ("siglip-base", "head.attention.out_proj", "out_proj is read by its MultiheadAttention without an adapter"),
        (
            "llama-2-7b",
            "query",
            r"\['query'\] matches no module of llama; roles are q, k, v, o, gate, up, down, names are",
        ),
    ],
)
def test_what_a_lora_does_not_adapt_is_refused_by_its_name_when_it_is_asked_for(name: str, target: str, reason: str):
    with pytest.raises(LayoutError, match=reason):
        layout_of(name, (target,))


def test_a_name_that_heads_share_is_written_so_that_peft_leaves_the_heads_alone():
    layout = layout_of("siglip-base", ("out_proj",))
    assert "out_proj" not in layout.target_modules  # vision_model.head.attention.out_proj is one too
    assert differences(layout, model_on_meta(LAYOUTS / "siglip-base", "image-text")) == []


DIGESTS = {  # a change here makes every adapter, shard and generator of these architectures a stranger to its store
    "tinyllama-1.1b": "6115ab133727ca228242390fae678e80", "qwen2.5-0.5b": "ab78db92ee67218bb27a1e6755ea0b1c",
    "mistral-7b-v0.3": "6b5436a4369f8eb3e2d7025bebe48102", "gemma-2-2b": "b983756cc54cdd5dc3d17dc929e9f5d0",
    "gpt2-xl": "107bdedd27f862dd4fb67daf4d1681b1", "roberta-base": "47d5ccab78e17da5dddf7ee6a091d6a2",
    "electra-small": "cd76e30e65bb57bda9531641a97cb11d", "xlm-roberta-base": "14ee1cd534460c302751923d687683ba",
    "smollm3-3b": "010c54af346856ebe5fa4296fe93712a", "qwen2-vl-7b": "cba2a15558ed8e5a5d957e9e02df7b85",
    "qwen3-embedding-0.6b": "5049e232d2da743e367e9a7aa46a8826",
}  # fmt: skip


@pytest.mark.parametrize(("name", "digest"), DIGESTS.items())
def test_the_digest_of_an_architecture_stays(name: str, digest: str):
    assert spec_of(name).digest == digest


def test_what_a_target_must_not_mean_is_no_part_of_the_digest():
    spec = spec_of("roberta-base")
    assert spec.model_copy(update={"no_targets": {}}).digest == spec.digest
    assert BaseModelSpec.model_validate(json.loads(spec.model_dump_json(exclude={"no_targets"}))).digest == spec.digest


@pytest.mark.parametrize(
    ("name", "slots"),
    [("falcon-7b", 2 * 32), ("gpt2-xl", 2 * 48), ("deepseek-v3", 2 * 61), ("mamba2-codestral", 2 * 64)],
)
def test_inspect_without_targets_takes_what_a_model_has_in_place_of_q_and_v(
    name: str, slots: int, capsys: pytest.CaptureFixture[str]
):
    assert main(["inspect", str(LAYOUTS / name)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{slots} slots, ")
