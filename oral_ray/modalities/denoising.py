"""Text-to-image bases: the denoiser of a diffusers pipeline is trained on the captioned images of a style.

The loss is the scheduler's own (`noising`) at noise and times drawn from a seeded stream. The value of an example is the
same error at `NUM_POINTS` fixed points of the schedule with noise of its own that never changes, so that two adapters are
compared on equal terms; lower is better.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from oral_ray.errors import BaseModelError, TaskError
from oral_ray.modalities.metrics import Metric, Values
from oral_ray.modalities.noising import Noised, Schedule, schedule_of
from oral_ray.modalities.pictures import PipelineParts
from oral_ray.modalities.protocol import Batch, Modality, TaskReader, Tokens
from oral_ray.modalities.text import PROBE_TEXT
from oral_ray.tasks.task import Example

DENOISING_LOSS = Metric("denoising_loss", higher_is_better=False, decimals=4)
NUM_POINTS = 8
"""At how many points of the schedule a value is measured."""


class Denoiser(Modality):
    """Pipelines of diffusers that draw from a caption, whatever their denoiser is made of."""

    of_pipelines = True
    metrics = (DENOISING_LOSS,)

    @torch.no_grad()
    def check(self, model: nn.Module, processor: PipelineParts) -> None:
        """One caption through the pipeline; BaseModelError where its parts do not fit each other, or answer no numbers."""
        config: Any = model.config
        channels = processor.components["vae"].config.latent_channels
        if config.in_channels != channels:
            raise BaseModelError(
                f"its denoiser reads {config.in_channels} channels, its autoencoder has {channels}; only pipelines that "
                "draw from a caption alone are trained"
            )
        schedule_of(processor.scheduler)
        try:
            answer = self.outputs(model, processor)
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise BaseModelError(
                f"its denoiser does not read what its text encoder makes ({reason}); put the components of one pipeline "
                "together"
            ) from None
        if not bool(torch.isfinite(answer).all()):
            raise BaseModelError("its outputs are not finite, though its weights are; compare its config.json")

    def check_labels(self, processor: Any, labels: Sequence[str]) -> None:
        """TaskError for a task with labels: there is nothing to choose, images are drawn."""
        if labels:
            raise TaskError(
                f"a base that draws images answers with no label ({', '.join(labels)}); give a task of images"
            )

    def reader(self, model: nn.Module, processor: PipelineParts, labels: Sequence[str]) -> TaskReader:
        """The reader of a style's images; TaskError for a task with labels."""
        self.check_labels(processor, labels)
        device = next(model.parameters()).device
        parts = processor.to(device)
        size = parts.image_size(model)
        schedule, rng = schedule_of(parts.scheduler), torch.Generator().manual_seed(0)
        return DenoisingReader(parts, parts.pipeline(model), size, schedule, device, rng)

    @torch.no_grad()
    def outputs(self, model: nn.Module, processor: PipelineParts) -> Tensor:
        """What the denoiser answers [1, C, H, W] to fixed noise in the middle of the schedule and a fixed caption."""
        weight = next(model.parameters())
        parts = processor.to(weight.device)
        tokens = parts.captions(parts.pipeline(model), [PROBE_TEXT])
        size = parts.image_size(model)
        config: Any = model.config
        shape = (1, config.in_channels, *_height_and_width(config.sample_size))
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        times_B = schedule_of(parts.scheduler).at(torch.tensor([0.5])).times_B
        tokens = {name: value.to(weight) for name, value in tokens.items()}
        return parts.family.answer(model, noise.to(weight), times_B.to(weight.device), tokens, size).float()


class Unet(Denoiser):
    """Pipelines with a UNet: Stable Diffusion 1.5, 2.1 and XL, and what is built like them."""

    name = "unet"

    def claims(self, config: Mapping[str, Any], own: Any) -> bool:
        """By the name of the denoiser's class."""
        return own is None and "UNet" in config["_class_name"]


class DiffusionTransformer(Denoiser):
    """Pipelines with a transformer: Stable Diffusion 3, PixArt. Of others (Flux) there are layouts."""

    name = "diffusion-transformer"

    def claims(self, config: Mapping[str, Any], own: Any) -> bool:
        """By the name of the denoiser's class."""
        return own is None and "Transformer" in config["_class_name"]


@dataclass(frozen=True, slots=True)
class DenoisingReader:
    """Captioned images of `size` pixels as latents and caption states; `rng` is the stream of noise of the training."""

    parts: PipelineParts
    pipeline: Any
    size: int
    schedule: Schedule
    device: torch.device
    rng: torch.Generator

    @property
    def metric(self) -> Metric:
        return DENOISING_LOSS

    def read(self, examples: Sequence[Example]) -> Batch:
        latents_BCHW = self.parts.latents(examples, self.size)
        captions = self.parts.captions(self.pipeline, [example.text for example in examples])
        seeds_B = torch.tensor([_seed_of(example) for example in examples])
        return Batch({"latents": latents_BCHW, **captions}, seeds_B).to(self.device)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        shape = batch.tokens["latents"].shape
        u_B, noise_BCHW = torch.rand(shape[0], generator=self.rng), torch.randn(shape, generator=self.rng)
        return self._errors(model, batch, u_B, noise_BCHW).mean()

    def prior(self, model: nn.Module, batches: Iterable[Batch]) -> Tensor:
        """Zero: an error is not calibrated."""
        return torch.zeros(())

    def values(self, model: nn.Module, batch: Batch, prior: Tensor | None = None) -> Values:
        """The mean error of each example over fixed points of the schedule, each with fixed noise of the example's own."""
        shape = batch.tokens["latents"].shape
        rngs = [torch.Generator().manual_seed(seed) for seed in batch.wanted_P.tolist()]
        errors = []
        for point in range(NUM_POINTS):
            noise_BCHW = torch.stack([torch.randn(shape[1:], generator=rng) for rng in rngs])
            u_B = torch.full((shape[0],), (point + 0.5) / NUM_POINTS)
            errors.append(self._errors(model, batch, u_B, noise_BCHW))
        return torch.stack(errors).mean(0).tolist()

    def lengths(self, examples: Sequence[Example]) -> list[int]:
        """All alike: an image has one size."""
        return [1] * len(examples)

    def skip_layers(self, model: nn.Module, batch: Batch, first_layer: int) -> Batch:
        """The same batch: what lies below a layer of a UNet depends on the noise."""
        return batch

    def _errors(self, model: nn.Module, batch: Batch, u_B: Tensor, noise_BCHW: Tensor) -> Tensor:
        """The mean squared error [B] of the denoiser at points of the schedule with this noise."""
        dtype = next(model.parameters()).dtype
        x0_BCHW, noise_BCHW = batch.tokens["latents"], noise_BCHW.to(self.device)
        noised: Noised = self.schedule.at(u_B.to(self.device))
        tokens: Tokens = {name: value.to(dtype) for name, value in batch.tokens.items() if name != "latents"}
        noisy_BCHW = noised.image(x0_BCHW, noise_BCHW).to(dtype)
        answer_BCHW = self.parts.family.answer(model, noisy_BCHW, noised.times_B, tokens, self.size)
        return (answer_BCHW.float() - noised.target(x0_BCHW, noise_BCHW)).square().flatten(1).mean(1)


def _seed_of(example: Example) -> int:
    """The seed of an example's own noise: by what it is, not by where it stands."""
    digest = example.image.digest if example.image else ""
    return int.from_bytes(hashlib.sha256(f"noise/{digest}/{example.text}".encode()).digest()[:7], "big")


def _height_and_width(sample_size: int | Sequence[int]) -> tuple[int, int]:
    return (sample_size, sample_size) if isinstance(sample_size, int) else (sample_size[0], sample_size[1])
