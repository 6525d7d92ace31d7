"""What a spec says of a base: from config.json alone, and compared with the headers that are there."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from oral_ray.adapters.layout import AdapterLayout
from oral_ray.bases.spec import read_spec, read_tensors
from oral_ray.config import LoraSettings
from oral_ray.errors import BaseModelError
from oral_ray.objects import FileObjects

LLAMA_8B = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "tie_word_embeddings": False,
}  # fmt: skip


def write_config(folder: Path, config: Any) -> FileObjects:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return FileObjects(folder)


def test_an_8_billion_model_is_described_from_its_config_alone_and_fast(tmp_path: Path):
    objects = write_config(tmp_path, LLAMA_8B)
    read_spec(write_config(tmp_path / "small", LLAMA_8B | {"num_hidden_layers": 1}))  # imports transformers' class
    started = time.perf_counter()
    spec = read_spec(objects)
    layout = AdapterLayout.of(spec, LoraSettings(r=8, target_modules=("q", "v")), token_dim=384)
    assert time.perf_counter() - started < 2.0
    by_role = {module.role: (module.d_in, module.d_out) for module in spec.modules if module.layer == 31}
    assert by_role == {
        "q": (4096, 4096), "k": (4096, 1024), "v": (4096, 1024), "o": (4096, 4096), "gate": (4096, 14336),
        "up": (4096, 14336), "down": (14336, 4096),
    }  # fmt: skip
    assert len(layout.slots) == 32 * 2 * 2
    assert layout.num_parameters == 3_407_872  # what peft reports for this model
    assert layout.num_tokens == 32 * 8 * (3 * 11 + 3)


def test_the_architecture_digest_is_that_of_the_shapes_and_not_of_the_version(tmp_path: Path):
    first = read_spec(write_config(tmp_path / "a", LLAMA_8B))
    second = read_spec(write_config(tmp_path / "b", LLAMA_8B | {"torch_dtype": "bfloat16", "rope_theta": 1}))
    other = read_spec(write_config(tmp_path / "c", LLAMA_8B | {"num_key_value_heads": 4}))
    assert first.digest == second.digest != other.digest


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("{", "not valid JSON"),
        ("[]", "holds no JSON object"),
        ("[" * 100_000, "not valid JSON"),
        ({}, "names no model_type"),
        ({"model_type": 3}, "names no model_type"),
        (LLAMA_8B | {"num_hidden_layers": 0}, "gives num_hidden_layers=0; it has to be a whole number from 1 to 1,000"),
        (LLAMA_8B | {"num_hidden_layers": 10**9}, "gives num_hidden_layers=1000000000; "),
        (LLAMA_8B | {"num_hidden_layers": True}, "gives num_hidden_layers=True; "),
        (LLAMA_8B | {"hidden_size": 2**40}, "it has to be a whole number from 1 to 10,000,000"),
        (LLAMA_8B | {"hidden_size": "4096"}, "gives hidden_size='4096'; "),
        (LLAMA_8B | {"hidden_size": 32.0}, "gives hidden_size=32.0; "),
        (LLAMA_8B | {"num_attention_heads": 0}, "gives num_attention_heads=0; "),
        (LLAMA_8B | {"text_config": {"head_dim": -1}}, "gives text_config.head_dim=-1; "),
        (
            LLAMA_8B | {"num_attention_heads": 7},
            "The hidden size (4096) is not a multiple of the number of attention heads",
        ),
        (
            LLAMA_8B | {"hidden_act": "cosh"},
            "cannot build a llama model from it: KeyError 'cosh'; compare it with the ",
        ),
        (
            LLAMA_8B | {"intermediate_size": [3]},
            "Field 'intermediate_size' expected int, got list (value: [3]); compare",
        ),
        (LLAMA_8B | {"head_dim": 500_000}, "makes model.layers.0.self_attn.q_proj 16000000 x 4096; check its numbers"),
        ({"model_type": "clip_text_model", "num_hidden_layers": None}, "Field 'num_hidden_layers' expected int"),
        (
            {"model_type": "novel", "hidden_size": 8},
            "does not know model type 'novel'; upgrade transformers to a version",
        ),
        ({"model_type": "novel", "auto_map": {"AutoConfig": "x.Y"}}, "; its own code (auto_map) is never run; upgrade"),
        ({"model_type": "resnet"}, "config.json describes a resnet without linear modules in layers; nothing to adapt"),
    ],
)
def test_a_config_that_does_not_describe_a_model_is_refused(tmp_path: Path, config: Any, reason: str):
    with pytest.raises(BaseModelError) as caught:
        read_spec(write_config(tmp_path, config))
    assert reason in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_folder_without_a_config_is_no_base_model(tmp_path: Path):
    with pytest.raises(BaseModelError, match=r"no base model at file://.*config.json is missing"):
        read_spec(FileObjects(tmp_path))


def test_headers_must_agree_with_the_config(tiny_bert: Path, tmp_path: Path):
    config = json.loads((tiny_bert / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((tiny_bert / "model.safetensors").read_bytes())
    assert read_spec(write_config(tmp_path, config)) == read_spec(FileObjects(tiny_bert))
    with pytest.raises(BaseModelError, match=r"intermediate.dense.weight is \(64, 32\), config.json says \(65, 32\)"):
        read_spec(write_config(tmp_path, config | {"intermediate_size": 65}))
    with pytest.raises(BaseModelError, match=r"no tensor for 'encoder.layer.2.attention.self.query.weight' among"):
        read_spec(write_config(tmp_path, config | {"num_hidden_layers": 3}))


def test_the_names_in_the_files_of_an_unknown_model_type_are_not_taken_for_names_of_modules(
    tiny_llama: Path, tmp_path: Path
):
    config = json.loads((tiny_llama / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((tiny_llama / "model.safetensors").read_bytes())
    with pytest.raises(BaseModelError, match=r"transformers [\d.]+ does not know model type 'novel'"):
        read_spec(write_config(tmp_path, config | {"model_type": "novel"}))


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_a_checkpoint_may_carry_the_prefix_of_its_head_class(tmp_path: Path, prefix: str):
    sizes = {"hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    objects = write_config(tmp_path, {"model_type": "bert", **sizes})
    modules = read_spec(objects).modules
    weights = {f"{prefix}{module.name}.weight": torch.zeros(module.d_out, module.d_in) for module in modules}
    save_file(weights, tmp_path / "model.safetensors")
    assert read_spec(objects).modules == modules


def shard(folder: Path, **weight_map: str) -> FileObjects:
    """Two shards with one tensor each, and an index that says what it is told."""
    save_file({"a": torch.zeros(2)}, folder / "one.safetensors")
    save_file({"b": torch.zeros(3)}, folder / "two.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return FileObjects(folder)


def test_a_sharded_checkpoint_has_the_tensors_of_all_its_shards(tmp_path: Path):
    found = read_tensors(shard(tmp_path, a="one.safetensors", b="two.safetensors"))
    assert {name: (entry.key, entry.shape) for name, entry in found.items()} == {
        "a": ("one.safetensors", (2,)), "b": ("two.safetensors", (3,)),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("weight_map", "reason"),
    [
        ({"a": "one.safetensors", "b": "three.safetensors"}, "shard 'three.safetensors' of .* is missing"),
        ({"a": "one.safetensors", "b": "../two.safetensors"}, "shard '../two.safetensors' of .* is missing"),
        ({"a": 3}, "has no weight_map"),
    ],
)
def test_a_sharded_checkpoint_that_lacks_something_is_refused(tmp_path: Path, weight_map: Any, reason: str):
    with pytest.raises(BaseModelError, match=reason):
        read_tensors(shard(tmp_path, **weight_map))


@pytest.mark.parametrize("index", ["", "[]", "{}", '{"weight_map": []}'])
def test_an_index_without_a_weight_map_is_refused(tmp_path: Path, index: str):
    objects = shard(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(BaseModelError, match=r"model.safetensors.index.json"):
        read_tensors(objects)
