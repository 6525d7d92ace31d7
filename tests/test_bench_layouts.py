"""Layouts of real models by config alone: their sizes, and that plain peft takes such adapters on meta models."""

import json
import time
from typing import Any

import pytest
import torch
from torch import nn

from oral_ray.bench.layouts import FOLDER, MODELS, RANKS, TARGETS, layout_of, spec_of
from oral_ray.errors import ConfigError

KNOWN_PARAMETERS = {
    ("mistral-7b", "q,v", 8): 3_407_872,
    ("llama-3.1-8b", "all-linear", 16): 41_943_040,
    ("gpt2", "q,v", 8): 12 * 8 * (768 + 2304),
    ("qwen2-vl-7b", "q,v", 8): 8 * (28 * (2 * 3584 + 3584 + 512) + 32 * (1280 + 3840)),
}  # fmt: skip


def meta_model(model: str) -> nn.Module:
    """The model that transformers or diffusers builds from the configuration, on the meta device."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

    with torch.device("meta"):
        if (kind := spec_of(model).kind) == "unet":
            unet = pytest.importorskip("diffusers").UNet2DConditionModel
            return unet.from_config(json.loads((FOLDER / model / "config.json").read_text()))
        auto: Any = {"encoder": AutoModel, "causal": AutoModelForCausalLM, "image-text": AutoModelForImageTextToText}
        return auto[kind].from_config(AutoConfig.from_pretrained(FOLDER / model))


@pytest.mark.parametrize("model", MODELS)
def test_an_adapter_of_every_layout_has_the_names_and_shapes_that_peft_gives_the_real_model(model: str):
    from peft import LoraConfig, get_peft_model
    from peft.utils import get_peft_model_state_dict

    base = meta_model(model)
    for targets in TARGETS:
        layout = layout_of(model, targets, 4, token_dim=1024)
        config = LoraConfig(
            r=4, target_modules=list(layout.target_modules), fan_in_fan_out=layout.fan_in_fan_out,
        )  # fmt: skip
        wrapped = get_peft_model(base, config, low_cpu_mem_usage=True)  # type: ignore[arg-type]
        state = get_peft_model_state_dict(wrapped)
        layout.check_shapes({name: tuple(tensor.shape) for name, tensor in state.items()}, model)
        wrapped.unload()


@pytest.mark.parametrize(("model", "targets", "r"), KNOWN_PARAMETERS)
def test_the_number_of_parameters_is_the_published_one(model: str, targets: str, r: int):
    assert layout_of(model, targets, r, 1024).num_parameters == KNOWN_PARAMETERS[model, targets, r]


def test_all_layouts_of_all_models_are_derived_without_torch_models_and_fast():
    started = time.perf_counter()
    layouts = [layout_of(m, t, r, 1024) for m in MODELS for t in TARGETS for r in RANKS]
    assert time.perf_counter() - started < 20.0
    assert len(layouts) == 80
    assert min(layout.num_parameters for layout in layouts) > 1e5 - 2e4
    assert max(layout.num_parameters for layout in layouts) > 8e8
    for layout in layouts:  # rank changes the number of rows, nothing else
        assert layout.num_parameters % layout.lora.r == 0


def test_layers_are_counted_through_the_vision_part_and_then_the_language_part():
    modules = spec_of("qwen2-vl-7b").modules
    vision = {module.layer for module in modules if module.name.startswith("model.visual.")}
    language = {module.layer for module in modules if module.name.startswith("model.language_model.")}
    assert (vision, language) == (set(range(32)), set(range(32, 60)))


def test_an_unknown_model_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"no configuration of 'llama-9'; there are bert-base, "):
        spec_of("llama-9")
