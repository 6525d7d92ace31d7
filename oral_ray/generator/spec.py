"""What every generator network shares: its description, what it is asked in a functional step.

Letters: B adapters, L tokens, D token dim, P position features, E text size, G model-condition size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor

from oral_ray.config import ConditionConfig, GeneratorConfig, LatentConfig, Record


class GeneratorSpec(Record):
    """Everything that is no tensor: sizes, condition settings, what it was trained on.

    `num_tokens` is the one length that a latent generator knows; 0 where any will do.
    """

    generator: GeneratorConfig | LatentConfig = Field(discriminator="kind")
    condition: ConditionConfig
    token_dim: int
    num_tokens: int = 0
    text_dim: int
    model_dim: int
    text_encoder_fingerprint: str
    architectures: tuple[str, ...]
    recipe: str

    @field_validator("generator", mode="before")
    @classmethod
    def _read_flat(cls, data: Any) -> Any:
        """Generators in stores of version 0.1 have the sizes of either kind and of either denoiser side by side."""
        if not isinstance(data, dict) or "kind" in data:
            return data
        sizes = dict(data)
        latent, denoiser = sizes.pop("latent", None), sizes.pop("denoiser", "mlp")
        width, num_blocks = sizes.pop("denoiser_width", 512), sizes.pop("denoiser_blocks", 3)
        channels = sizes.pop("conv_channels", (64, 96, 64))
        if latent is not None:
            return {"kind": "latent", **latent, "objective": sizes["objective"]}
        if denoiser == "conv":
            return {"kind": "tokens", **sizes, "denoiser": {"kind": "conv", "channels": channels}}
        return {"kind": "tokens", **sizes, "denoiser": {"kind": "mlp", "width": width, "num_blocks": num_blocks}}


@dataclass(frozen=True, slots=True)
class FunctionalItem:
    """One functional step (see functional.py): what the generator is asked, and the loss of its answers."""

    position_BLP: Tensor
    mask_BLD: Tensor
    text_BE: Tensor
    model_BG: Tensor
    noise_BLD: Tensor
    task_loss: Callable[[Tensor], Tensor]

    def to(self, device: torch.device) -> "FunctionalItem":
        """What is asked, on a device; the loss takes tokens from where its base is."""
        return FunctionalItem(
            self.position_BLP.to(device),
            self.mask_BLD.to(device),
            self.text_BE.to(device),
            self.model_BG.to(device),
            self.noise_BLD.to(device),
            self.task_loss,
        )
