"""Adapters in the files of other libraries: diffusers' `pytorch_lora_weights.safetensors`.

    export_diffusers(read_folder(Path("my-adapter")), Path("pytorch_lora_weights.safetensors"))

diffusers reads one file with peft's factors under `<component>.<module>.lora_A.weight` and takes alpha = r, so what peft
multiplies the product with (lora_alpha / r, or / sqrt(r) of a rank-stabilised LoRA) goes into lora_B. Only modules of a
diffusers denoiser have a component to belong to: everything else would be passed over silently when the file is loaded,
so it is refused here.
"""

import json
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from oral_ray.adapters.artifact import AdapterArtifact
from oral_ray.adapters.intake import plain_factors
from oral_ray.errors import ArtifactError, StoreError

FILE_NAME = "pytorch_lora_weights.safetensors"
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
    """The factors by diffusers' names, lora_B scaled by what peft multiplies the product with."""
    plain = plain_factors(artifact)
    tensors = {}
    for module, (a, b) in sorted(plain.factors.items()):
        component = _COMPONENTS.get(module.partition(".")[0])
        if component is None:
            raise ArtifactError(
                f"module {module!r} is of no diffusers UNet or transformer (their modules start with "
                f"{', '.join(_COMPONENTS)}); use the adapter with peft as it is"
            )
        tensors[f"{component}.{module}.lora_A.weight"] = a.contiguous()
        tensors[f"{component}.{module}.lora_B.weight"] = (b * (plain.lora_alpha / plain.r)).contiguous()
    return tensors


def _about(artifact: AdapterArtifact) -> dict[str, str]:
    """Where the file came from, for whoever opens its header."""
    origin = artifact.provenance
    return {"oral_ray": json.dumps({"digest": artifact.digest, "base": origin.base_id, "prompt": origin.prompt})}
