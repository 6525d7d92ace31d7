"""What peft makes of a base whose config.json is all there is, on the meta device: what every layout is compared with.

model = model_on_meta(folder, spec.kind)
differences(layout, model)                     # [] when peft makes exactly the layout's tensors
adapted(model, ["q_proj", "v_proj"])           # the modules that peft adapts for these target_modules
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from oral_ray.adapters.layout import AdapterLayout

LAYOUTS = Path(__file__).parent / "layouts"
"""Public architectures by the numbers of their configs, one folder with a config.json each."""


def model_on_meta(folder: Path, kind: str) -> nn.Module:
    """The model that transformers or diffusers builds from `folder/config.json`, of the class that `kind` is loaded by."""
    import transformers

    config = json.loads((folder / "config.json").read_text())
    with torch.device("meta"):
        if kind in ("unet", "diffusion-transformer"):
            import diffusers

            return getattr(diffusers, config["_class_name"]).from_config(config)
        own = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        auto: Any = {
            "causal": transformers.AutoModelForCausalLM,
            "image-text": transformers.AutoModelForImageTextToText,
        }
        name = (config.get("architectures") or [""])[0]
        if kind == "encoder-decoder" and name.endswith("ForConditionalGeneration"):
            return transformers.AutoModelForSeq2SeqLM.from_config(own)
        known = auto.get(kind, transformers.AutoModel)
        known = known if type(own) in known._model_mapping else transformers.AutoModel
        return known.from_config(own, trust_remote_code=False)


def adapted(model: nn.Module, targets: Sequence[str] | str, r: int = 4, **options: Any) -> dict[str, tuple[int, ...]]:
    """The tensors of a LoRA adapter that peft makes for `target_modules`, by their names in a file; the model is as before.

    Raises ValueError where peft refuses a target.
    """
    from peft import LoraConfig, get_peft_model
    from peft.utils import get_peft_model_state_dict

    targets = targets if isinstance(targets, str) else list(targets)
    config = LoraConfig(r=r, target_modules=targets, **options)
    wrapped = get_peft_model(model, config, low_cpu_mem_usage=True)  # type: ignore[arg-type]
    try:
        return {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(wrapped).items()}
    finally:
        wrapped.unload()


def named(model: nn.Module, targets: Sequence[str]) -> set[str]:
    """The modules that peft takes these `target_modules` for."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    config = LoraConfig(target_modules=list(targets))
    return {name for name, _ in model.named_modules() if check_target_module_exists(config, name)}


def differences(layout: AdapterLayout, model: nn.Module) -> list[str]:
    """One sentence for every tensor that only one of peft and the layout has, or that they have in two shapes."""
    wanted = {slot.key: slot.shape(layout.lora.r) for slot in layout.slots}
    found = adapted(model, layout.target_modules, layout.lora.r, fan_in_fan_out=layout.fan_in_fan_out)
    return [
        f"{name}: peft {found.get(name)}, layout {wanted.get(name)}"
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]
