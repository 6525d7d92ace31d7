"""Makes the inputs of the checks, all of them tiny: `python -m fault_checks.inputs FOLDER`.

FOLDER/sound/bases/{bert,llama,gpt2,...}    FOLDER/bases/KIND      of tests/wild/checkpoints.py
FOLDER/adapters/NAME                        of tests/wild/adapters.py, for sound/bases/llama unless it says otherwise
FOLDER/layouts/NAME/config.json             architectures by their config alone
FOLDER/hub/                                 a cache of the Hugging Face hub, with its links, that holds tiny/bert
FOLDER/tasks/{spam,ham}                     the same task of one's own under two names
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from adapters import ADAPTERS, LLAMA, WildAdapter, factors, peft_settings, write
from checkpoints import CHECKPOINTS, SHARDS, TINY, configure, four_bit, gptq, other_model, put, shard, weights_of
from on_meta import LAYOUTS
from sound import make_sound

from fault_checks.place import hub_cache

SD_REFINER = {
    "_class_name": "UNet2DConditionModel", "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "attention_head_dim": [6, 12, 24, 24], "block_out_channels": [384, 768, 1536, 1536], "cross_attention_dim": 1280,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "layers_per_block": 2, "projection_class_embeddings_input_dim": 2560, "sample_size": 128,
    "transformer_layers_per_block": 4, "use_linear_projection": True,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip
MISTRAL = {
    "model_type": "mistral", "architectures": ["MistralForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 2, "num_attention_heads": 32, "vocab_size": 32000,
}  # fmt: skip


def main(folder: Path) -> None:
    """Make everything below a folder."""
    make_sound(folder / "sound")
    llama = folder / "sound/bases/llama"
    (folder / "bases").mkdir()
    for kind, made in CHECKPOINTS.items():
        made.make(llama, folder / "bases" / kind)
    more_bases(folder / "bases", llama)
    for name, wild in (ADAPTERS | MORE_ADAPTERS).items():
        wild.build(folder / "adapters" / name)
    merged_start(folder / "adapters", llama)
    shutil.copytree(LAYOUTS, folder / "layouts")
    for name, config in {"sdxl-refiner": SD_REFINER, "mistral-without-kv": MISTRAL}.items():
        (folder / "layouts" / name).mkdir()
        (folder / "layouts" / name / "config.json").write_text(json.dumps(config))
    hub_cache(folder / "hub", folder / "sound/bases/bert", "tiny/bert")
    for name in ("spam", "ham"):
        own_task(folder / "tasks" / name)


def more_bases(folder: Path, llama: Path) -> None:
    """Checkpoints that the tests make where they use them."""
    both = Path(shutil.copytree(llama, folder / "single file beside shards"))
    weights = weights_of(both)
    shard(both)
    put(both, {name: tensor + 1 for name, tensor in weights.items()})
    copy = Path(shutil.copytree(llama, folder / "consolidated beside the single file"))
    put(copy, {"layers.0.attention.wq.weight": torch.ones(32, 32)}, "consolidated.safetensors")
    for name, edit in {"4-bit Olmo": four_bits, "AWQ Olmo": awq}.items():
        other_model("OlmoForCausalLM", "OlmoConfig", edit, **TINY)(llama, folder / name)
    four = Path(shutil.copytree(llama, folder / "half bytes"))
    add_four_bit_floats(four / "model.safetensors")
    lost = Path(shutil.copytree(llama, folder / "shards without an index"))
    shard(lost)
    (lost / "model.safetensors.index.json").unlink()
    assert (lost / SHARDS[0]).exists()
    qwen2_vl(folder / "Qwen2-VL", llama)


def add_four_bit_floats(path: Path) -> None:
    """One more tensor in a file: eight numbers of the type F4."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    end = len(data) - start
    header = json.loads(data[8:start]) | {"model.x": {"dtype": "F4", "shape": [8], "data_offsets": [end, end + 4]}}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[start:] + bytes(4))


def four_bits(folder: Path) -> None:
    """Every projection as bitsandbytes stores it in four bits."""
    put(folder, four_bit("bitsandbytes__nf4")(weights_of(folder)))
    configure(folder, quantization_config={"load_in_4bit": True, "quant_method": "bitsandbytes"})


def awq(folder: Path) -> None:
    """Every projection as AWQ stores it, but for the last one: what is read off the file is not empty."""
    weights = weights_of(folder)
    last = max(name for name in weights if "proj" in name)
    put(folder, gptq(False)(weights) | {last: weights[last]})
    configure(folder, quantization_config={"bits": 4, "group_size": 128, "quant_method": "awq", "version": "gemm"})


def qwen2_vl(folder: Path, llama: Path) -> None:
    """A tiny Qwen2-VL under the names of the published ones: `visual.`, `model.layers.`, `lm_head`."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    text = {
        "vocab_size": 1000, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
    }  # fmt: skip
    vision = {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 2}
    tokens: dict[str, Any] = {
        "image_token_id": 1,
        "video_token_id": 2,
        "vision_start_token_id": 3,
        "vision_end_token_id": 4,
    }
    config = Qwen2VLConfig(text_config=text, vision_config=vision, **tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    weights = {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): tensor
        for name, tensor in weights_of(folder).items()
    }
    put(folder, weights)
    for path in llama.glob("tokenizer*"):
        shutil.copy(path, folder)


def merged_start(folder: Path, llama: Path) -> None:
    """PiSSA and OLoRA as peft makes them: their factors are taken out of the base's own weights, which is changed."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    for start in ("pissa", "olora"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
            model = get_peft_model(
                AutoModelForCausalLM.from_pretrained(llama), LoraConfig(init_lora_weights=start, **settings)
            )
            model.save_pretrained(str(folder / f"{start} by peft"))


def scaled_for_unet(folder: Path) -> None:
    """A rank-stabilised adapter of a UNet, to be exported."""
    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    settings = peft_settings(use_rslora=True, target_modules=["to_q"], task_type=None)
    write(folder, settings, factors({module: (8, 8)}))


MORE_ADAPTERS = {
    "rslora of a UNet": WildAdapter(scaled_for_unet),
    "of another base of the architecture": WildAdapter(
        lambda folder: write(folder, peft_settings(base_model_name_or_path="org/another-base"), factors(LLAMA)) and None
    ),
}


def own_task(folder: Path) -> None:
    """A task folder as the documents describe it: two labels, three splits."""
    folder.mkdir(parents=True)
    (folder / "task.toml").write_text('labels = ["spam", "mail"]\ntext = "a message"\n')
    for split, count in (("train", 40), ("validation", 20), ("test", 20)):
        words = {"spam": "buy gold", "mail": "big dog"}
        rows = [(i, ("mail", "spam")[i % 2]) for i in range(count)]
        lines = [json.dumps({"text": f"{split} {i}: {words[label]} {i * 7}", "label": label}) for i, label in rows]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
