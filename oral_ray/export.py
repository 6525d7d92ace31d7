"""Adapters in the files of other libraries: diffusers' `pytorch_lora_weights.safetensors`.

    export_diffusers(read_folder(Path("my-adapter")), Path("pytorch_lora_weights.safetensors"))

diffusers reads one file with peft's factors under `<component>.<module>.lora_A.weight` and takes alpha = r, so the scale
lora_alpha / r goes into lora_B. Only modules of a diffusers denoiser have a component to belong to: everything else
would be passed over silently when the file is loaded, so it is refused here.
"""

import json
import re
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from oral_ray.adapters.artifact import AdapterArtifact
from oral_ray.errors import ArtifactError, StoreError

FILE_NAME = "pytorch_lora_weights.safetensors"
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
_COMPONENTS = {  # the first part of a module's name -> the pipeline's component
    "down_blocks": "unet", "mid_block": "unet", "up_blocks": "unet",
    "transformer_blocks": "transformer", "single_transformer_blocks": "transformer",
}  # fmt: skip


def export_diffusers(artifact: AdapterArtifact, path: Path) -> Path:
    """Write the artifact as diffusers' LoRA file; ArtifactError for one that is no LoRA of a diffusers denoiser."""
    data = save(diffusers_tensors(artifact), metadata={"format": "pt", **_about(artifact)})
    try:
        path.write_bytes(data)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}; choose another file") from None
    return path


def diffusers_tensors(artifact: AdapterArtifact) -> dict[str, Tensor]:
    """The factors by diffusers' names, lora_B scaled by lora_alpha / r."""
    lora = artifact.lora
    tensors = {}
    for key, tensor in sorted(artifact.tensors.items()):
        if not (match := _KEY.fullmatch(key)):
            raise ArtifactError(f"{key!r} is no factor of a LoRA; diffusers has no place for it")
        module = match["module"]
        component = _COMPONENTS.get(module.partition(".")[0])
        if component is None:
            raise ArtifactError(
                f"module {module!r} is of no diffusers UNet or transformer (their modules start with "
                f"{', '.join(_COMPONENTS)}); use the adapter with peft as it is"
            )
        other = key.replace(".lora_A.", ".lora_B.") if match["factor"] == "A" else key.replace(".lora_B.", ".lora_A.")
        if other not in artifact.tensors:
            raise ArtifactError(
                f"{key!r} has no {other.rpartition('.lora_')[2]!r} beside it; the adapter is incomplete"
            )
        scale = lora.lora_alpha / lora.r if match["factor"] == "B" else 1.0
        tensors[f"{component}.{module}.lora_{match['factor']}.weight"] = (tensor * scale).contiguous()
    if not tensors:
        raise ArtifactError("the adapter has no tensors; there is nothing to export")
    return tensors


def _about(artifact: AdapterArtifact) -> dict[str, str]:
    """Where the file came from, for whoever opens its header."""
    origin = artifact.provenance
    return {"oral_ray": json.dumps({"digest": artifact.digest, "base": origin.base, "prompt": origin.prompt})}
