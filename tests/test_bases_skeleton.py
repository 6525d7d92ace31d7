"""A base's own class on the meta device: what it is used as, what it says against a config, and that it leaves no trace."""

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from wild.on_meta import LAYOUTS

from oral_ray.bases import building, skeleton
from oral_ray.bases.skeleton import Linear, build_skeleton
from oral_ray.errors import BaseModelError

LLAMA = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": 50,
}  # fmt: skip
BERT = {
    "model_type": "bert", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "vocab_size": 50,
}  # fmt: skip
UNET = {
    "_class_name": "UNet2DConditionModel", "model_type": "UNet2DConditionModel", "block_out_channels": [32, 64],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 8, "attention_head_dim": 8, "layers_per_block": 1, "norm_num_groups": 8,
}  # fmt: skip


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {linear.name: (linear.d_in, linear.d_out) for linear in build_skeleton(config, "x").linears}


def test_what_a_config_leaves_out_is_what_its_class_takes_for_it():
    found = shapes(LLAMA | {"model_type": "mistral"})  # whose num_key_value_heads is 8 where a config has none
    assert found["model.layers.0.self_attn.k_proj"] == (16, 8 * 4)
    assert shapes(LLAMA)["model.layers.0.self_attn.k_proj"] == (16, 4 * 4)  # llama's is that of its queries


def test_a_stored_weight_that_is_transposed_is_said_to_be():
    found = build_skeleton({"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2}, "x").linears
    assert Linear("transformer.h.0.attn.c_attn", d_in=8, d_out=24, transposed=True) in found


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("causal", LLAMA),
        ("causal", LLAMA | {"architectures": ["LlamaForSequenceClassification"]}),
        ("encoder", BERT | {"architectures": ["BertForMaskedLM"]}),
        ("encoder", BERT | {"architectures": ["BertLMHeadModel"]}),
        ("causal", BERT | {"architectures": ["BertLMHeadModel"], "is_decoder": True}),
        ("unet", UNET),
        *(
            (kind, json.loads((LAYOUTS / name / "config.json").read_text()))
            for kind, name in [
                ("encoder", "distilbert-base"), ("encoder", "nomic-embed-v1.5"), ("encoder-decoder", "flan-t5-base"),
                ("image-text", "siglip-base"), ("image-text", "paligemma2-3b"), ("vision", "dinov2-base"),
                ("audio", "wav2vec2-base"),
            ]
        ),
    ],
)  # fmt: skip
def test_what_a_base_is_used_as_follows_from_its_type_and_not_from_the_head_it_was_saved_with(kind: str, config: Any):
    assert build_skeleton(config, "x").kind == kind


def test_an_encoder_decoder_that_writes_has_the_names_of_the_class_that_writes():
    config = {"model_type": "bart", "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 50}
    assert "encoder.layers.0.fc1" in shapes(config | {"architectures": ["BartModel"]})
    assert "model.encoder.layers.0.fc1" in shapes(config | {"architectures": ["BartForConditionalGeneration"]})


def test_code_that_a_checkpoint_brings_along_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "configuration_own.py").write_text("raise SystemExit('run')")
    monkeypatch.chdir(tmp_path)
    own = {"auto_map": {"AutoConfig": "configuration_own.Own", "AutoModelForCausalLM": "configuration_own.Own"}}
    assert shapes(LLAMA | own) == shapes(LLAMA)


def test_how_a_model_computes_is_no_matter_of_its_shapes():
    how = {
        "attn_implementation": "flash_attention_2", "torch_dtype": "float8_e4m3fn",
        "quantization_config": {"quant_method": "gptq", "bits": 4},
    }  # fmt: skip
    assert shapes(LLAMA | how) == shapes(LLAMA)


def test_building_leaves_random_numbers_the_default_device_and_the_log_as_they_were(caplog: pytest.LogCaptureFixture):
    from transformers.utils import logging

    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), logging.get_verbosity())
    build_skeleton(LLAMA | {"intermediate_size": 36, "unheard_of": 3}, "x")
    after = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), logging.get_verbosity())
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert torch.zeros(1).device.type == "cpu"
    assert not caplog.records


def test_a_config_is_built_once(monkeypatch: pytest.MonkeyPatch):
    build_skeleton(LLAMA, "x")
    monkeypatch.setattr(skeleton, "build_on_meta", None)
    assert build_skeleton(dict(reversed(LLAMA.items())), "elsewhere").kind == "causal"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            {"model_type": "siglip", "vision_config": 3},
            "x/config.json: transformers .* cannot build a siglip model from it: ",
        ),
        ({"model_type": "encoder-decoder"}, "x/config.json: transformers .* has no AutoModel for model type 'encoder-"),
        (UNET | {"block_out_channels": [32]}, "cannot build a UNet2DConditionModel from it: ValueError|Must provide"),
        (
            UNET | {"_class_name": "Novel", "model_type": "Novel"},
            "diffusers .* has no model 'Novel'; take a pipeline's",
        ),
        (UNET | {"_class_name": "os.system", "model_type": "os.system"}, "has no model 'os.system'"),
        (
            UNET | {"_class_name": "DDPMScheduler", "model_type": "DDPMScheduler"},
            "has no model 'DDPMScheduler'; take a pipeline's unet or transformer folder, or upgrade diffusers",
        ),
        (
            UNET | {"_class_name": "AutoencoderKL", "model_type": "AutoencoderKL"},
            "is not what a pipeline denoises with",
        ),
    ],
)
def test_what_is_no_base_is_refused_with_what_its_class_says(config: Any, reason: str):
    with pytest.raises(BaseModelError, match=reason) as caught:
        build_skeleton(config, "x")
    assert "\n" not in str(caught.value)


def test_a_model_of_too_many_modules_is_given_up_while_it_is_built(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(building, "MAX_MODULES", 40)
    with pytest.raises(BaseModelError, match="more than 40 modules; check its numbers"):
        build_skeleton(LLAMA | {"num_hidden_layers": 30}, "x")


def test_a_denoiser_without_diffusers_is_refused_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(BaseModelError, match="diffusers, which is not installed; run pip install diffusers"):
        build_skeleton(UNET | {"sample_size": 3}, "x")
