"""Sound checkpoints and adapters for mutations.py: tiny, of several families, single file and sharded, dtypes and scales."""

import json
from pathlib import Path
from typing import Any

import torch
from conftest import save_model, save_tokenizer
from safetensors.torch import load_file, save_file

CLS, BARE = ("[CLS] $A [SEP]", [("[CLS]", 2), ("[SEP]", 3)]), ("[CLS] $A", [("[CLS]", 2)])
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def make_sound(folder: Path) -> Path:
    """`bases/NAME` and `adapters/NAME--KIND` below a folder, which is returned."""
    import transformers as t

    grouped: dict[str, Any] = SIZES | {"num_key_value_heads": 2, "max_position_embeddings": 512}
    _base(folder / "bases/bert", CLS, t.BertModel, t.BertConfig, SIZES | {"max_position_embeddings": 512})
    _base(folder / "bases/llama", BARE, t.LlamaForCausalLM, t.LlamaConfig, grouped)
    _base(folder / "bases/llama_tied", BARE, t.LlamaForCausalLM, t.LlamaConfig, grouped | {"tie_word_embeddings": True})
    _base(folder / "bases/qwen3", BARE, t.Qwen3ForCausalLM, t.Qwen3Config, grouped | {"head_dim": 16})
    gpt2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
    _base(folder / "bases/gpt2", BARE, t.GPT2LMHeadModel, t.GPT2Config, gpt2)
    _base(folder / "bases/sharded", BARE, t.LlamaForCausalLM, t.LlamaConfig, grouped)
    _shard(folder / "bases/sharded")
    for base, kind, settings in (
        ("bert", "plain", {"target_modules": ["query", "value"]}),
        ("llama", "plain", {"target_modules": ["q_proj", "v_proj"]}),
        ("llama", "rslora", {"target_modules": ["q_proj", "v_proj"], "use_rslora": True}),
        ("llama", "mlp", {"target_modules": ["gate_proj", "up_proj", "down_proj"], "r": 2}),
        ("gpt2", "conv", {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
    ):
        _adapter(folder / "bases" / base, folder / f"adapters/{base}--{kind}", settings)
    return folder


def _base(folder: Path, template: Any, model_class: Any, config_class: Any, sizes: dict[str, Any]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = save_tokenizer(folder, template)
    save_model(model_class, config_class(vocab_size=len(tokenizer), pad_token_id=0, **sizes), folder)
    (folder / "generation_config.json").unlink(missing_ok=True)


def _shard(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, chosen in parts.items():
        save_file({name: tensors[name] for name in chosen}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, chosen in parts.items() for name in chosen}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def _adapter(base: Path, folder: Path, settings: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel, AutoModelForCausalLM

    auto = AutoModel if base.name == "bert" else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(auto.from_pretrained(base), LoraConfig(**{"r": 4, "lora_alpha": 8, **settings}))
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.data += 0.05 * torch.randn_like(parameter)
        model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
