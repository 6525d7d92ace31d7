"""Whether a damaged folder was taken for what it is: logits of oral_ray beside the truth (see mutations.py)."""

import functools
import warnings
from pathlib import Path
from typing import Any

import torch
from mutations import TEXT, Damage, outcome_of, rounded_state
from safetensors.torch import load_file
from torch import Tensor

from oral_ray.adapters.artifact import read_folder
from oral_ray.adapters.intake import take as plain_adapter
from oral_ray.adapters.lora import attached
from oral_ray.bases.catalog import describe_base
from oral_ray.bases.loading import LoadedBase, load_base, open_base
from oral_ray.objects import FileObjects


@torch.no_grad()
def answer(model: Any, tokenizer: Any) -> list[Tensor]:
    """The token ids of a text, and what the model makes of them: logits, or an encoder's hidden states."""
    read = tokenizer(TEXT, return_tensors="pt")
    made = model(**{name: value for name, value in read.items() if name in ("input_ids", "attention_mask")})
    return [read["input_ids"].float(), made.logits if "logits" in made else made.last_hidden_state]


def judge_checkpoint(sound: Path, folder: Path, damage: Damage) -> tuple[str, str]:
    """("taken", "") or ("refused", reason); AssertionError for anything else."""

    def take() -> list[Tensor]:
        base = load_base(describe_base(FileObjects(folder), "", "base"))
        return answer(base.model, base.tokenizer)

    def truth() -> list[Tensor]:
        if damage.touched_json:
            first, second = (_by_transformers(sound, folder, damage) for _ in range(2))
            assert torch.equal(first[1], second[1]), f"{damage.words}: taken, transformers fills in random weights"
            return first
        base = open_base(str(sound))
        base.model.load_state_dict(rounded_state(base.model, damage))
        return answer(base.model, base.tokenizer)

    return outcome_of(take, truth, damage.words)


def _by_transformers(sound: Path, folder: Path, damage: Damage) -> list[Tensor]:
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    auto = AutoModel if sound.name == "bert" else AutoModelForCausalLM
    model, info = auto.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True)
    missing = [name for name in info["missing_keys"] if "pooler" not in name]
    assert not missing, f"{damage.words}: taken, transformers misses {missing[:3]}"
    return answer(model.eval(), AutoTokenizer.from_pretrained(folder))


@functools.cache
def _base(folder: Path) -> LoadedBase:
    return open_base(str(folder))


def judge_adapter(sound: Path, base_folder: Path, folder: Path, damage: Damage) -> tuple[str, str]:
    """The same for an adapter of a base; afterwards the base must be what it was."""
    base = _base(base_folder)
    before = answer(base.model, base.tokenizer)[1]

    def take() -> list[Tensor]:
        with attached(base, plain_adapter(base, read_folder(folder))) as model:
            return [answer(model, base.tokenizer)[1]]

    def truth() -> list[Tensor]:
        plain = _by_hand(base_folder, sound, damage)
        if not damage.touched_json:
            return plain
        theirs = _by_peft(base_folder, folder)
        ours = take()
        return plain if float((ours[0] - plain[0]).abs().max()) < 1e-5 else theirs

    outcome = outcome_of(take, truth, damage.words)
    after = answer(base.model, base.tokenizer)[1]
    assert torch.equal(before, after), f"{damage.words}: the base is another one afterwards"
    return outcome


def _by_hand(base_folder: Path, sound: Path, damage: Damage) -> list[Tensor]:
    """The base with alpha/r times B A added to its weights; tensors rounded as the damaged file stores them."""
    import json

    config = json.loads((sound / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])
    tensors = load_file(sound / "adapter_model.safetensors")
    tensors = {name: t.to(damage.rounded.get(name, t.dtype)).float() for name, t in tensors.items()}
    base = open_base(str(base_folder))
    for name, a in tensors.items():
        if ".lora_A." in name:
            module = base.model.get_submodule(name.removeprefix("base_model.model.").partition(".lora_A.")[0])
            change = scale * tensors[name.replace(".lora_A.", ".lora_B.")] @ a
            weight: Any = module.weight
            weight.data += change if weight.shape == change.shape else change.T
    return [answer(base.model, base.tokenizer)[1]]


def _by_peft(base_folder: Path, folder: Path) -> list[Tensor]:
    from peft import PeftModel

    base = open_base(str(base_folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(base.model, str(folder))
    return [answer(model.eval(), base.tokenizer)[1]]
