"""Layouts of real models by config alone: their sizes, and that plain peft takes such adapters on meta models."""

import time
from pathlib import Path

import pytest
from wild.on_meta import differences, model_on_meta

from oral_ray.bench.layouts import FOLDER, MODELS, RANKS, TARGETS, layout_of, spec_of
from oral_ray.errors import ConfigError

KNOWN_PARAMETERS = {
    ("mistral-7b", "q,v", 8): 3_407_872,
    ("llama-3.1-8b", "all-linear", 16): 41_943_040,
    ("gpt2", "q,v", 8): 12 * 8 * (768 + 2304),
    ("qwen2-vl-7b", "q,v", 8): 8 * (28 * (2 * 3584 + 3584 + 512) + 32 * (1280 + 3840)),
}  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_an_adapter_of_every_layout_has_the_names_and_shapes_that_peft_gives_the_real_model(model: str):
    base = model_on_meta(FOLDER / model, spec_of(model).kind)
    for targets in TARGETS:
        assert differences(layout_of(model, targets, 4, token_dim=1024), base) == []


@pytest.mark.parametrize(("model", "targets", "r"), KNOWN_PARAMETERS)
def test_the_number_of_parameters_is_the_published_one(model: str, targets: str, r: int):
    assert layout_of(model, targets, r, 1024).num_parameters == KNOWN_PARAMETERS[model, targets, r]


def test_all_layouts_of_all_models_are_derived_fast():
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


def test_the_layout_of_ones_own_model_is_derived_from_its_folder(tiny_llama: Path):
    layout = layout_of(str(tiny_llama), "all-linear", 2, 64)
    assert layout.lora.r == 2
    assert {slot.role for slot in layout.slots} == {"q", "k", "v", "o", "gate", "up", "down"}


def test_an_unknown_model_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"no configuration of 'llama-9'; there are bert-base, "):
        spec_of("llama-9")
