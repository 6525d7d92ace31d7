"""Text-to-image pipelines: what reads captions and images, what a denoiser is told, and drawing. Imports no diffusers.

A pipeline of diffusers is its denoiser, which adapters change, and parts that stay as they are. Captions and images go
through the parts once each and are kept; how a family of pipelines encodes a caption and calls its denoiser is an entry of
`FAMILIES`.

    tokens = parts.captions(pipeline, ["a cat"]); latents_BCHW = parts.latents([example], 64)
    [image] = parts.draw(model, ["a cat"], seeds=[0], num_steps=20, guidance_scale=5.0)
    Path("cat.png").write_bytes(png(image))

Letters: B examples, C channels, H, W latent height and width, T text tokens, D width of a text state.
"""

import hashlib
import inspect
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from oral_ray.errors import TaskError
from oral_ray.modalities.protocol import Tokens
from oral_ray.tasks.images import rgb_pixels
from oral_ray.tasks.task import Example

MAX_KEPT_BYTES = 2_000_000_000
"""Bytes of latents, and again of caption states, that are kept for one base; further ones are made whenever asked for."""
_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Family:
    """How pipelines of one class encode captions (tensors [B, ...] by name), and how their denoiser answers with them.

    `answer` takes the denoiser, noisy latents [B, C, H, W], times [B], the encoded captions and the image's size in pixels.
    `drawing` are options of the pipeline's call.
    """

    encode: Callable[[Any, list[str]], Tokens]
    answer: Callable[[nn.Module, Tensor, Tensor, Tokens, int], Tensor]
    drawing: Mapping[str, Any] = field(default_factory=dict)


def _encode_sd(pipeline: Any, texts: list[str]) -> Tokens:
    states_BTD, _ = pipeline.encode_prompt(texts, pipeline.device, 1, False)
    return {"states": states_BTD}


def _answer_sd(model: nn.Module, noisy: Tensor, times: Tensor, tokens: Tokens, size: int) -> Tensor:
    return model(noisy, times, encoder_hidden_states=tokens["states"], return_dict=False)[0]


def _encode_xl(pipeline: Any, texts: list[str]) -> Tokens:
    states_BTD, _, pooled_BD, _ = pipeline.encode_prompt(
        texts, device=pipeline.device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return {"states": states_BTD, "pooled": pooled_BD}


def _answer_xl(model: nn.Module, noisy: Tensor, times: Tensor, tokens: Tokens, size: int) -> Tensor:
    # The size of the image, where it was cut (nowhere), and the size to draw: training images are whole squares.
    sizes = torch.tensor([[size, size, 0, 0, size, size]], device=noisy.device, dtype=noisy.dtype)
    added = {"text_embeds": tokens["pooled"], "time_ids": sizes.expand(len(noisy), -1)}
    states = tokens["states"]
    return model(noisy, times, encoder_hidden_states=states, added_cond_kwargs=added, return_dict=False)[0]


def _encode_sd3(pipeline: Any, texts: list[str]) -> Tokens:
    states_BTD, _, pooled_BD, _ = pipeline.encode_prompt(
        texts, texts, texts, device=pipeline.device, do_classifier_free_guidance=False
    )
    return {"states": states_BTD, "pooled": pooled_BD}


def _answer_sd3(model: nn.Module, noisy: Tensor, times: Tensor, tokens: Tokens, size: int) -> Tensor:
    told = {"encoder_hidden_states": tokens["states"], "pooled_projections": tokens["pooled"]}
    return model(hidden_states=noisy, timestep=times, return_dict=False, **told)[0]


def _encode_pixart(pipeline: Any, texts: list[str]) -> Tokens:
    states_BTD, mask_BT, _, _ = pipeline.encode_prompt(texts, do_classifier_free_guidance=False, device=pipeline.device)
    return {"states": states_BTD, "mask": mask_BT}


def _answer_pixart(model: nn.Module, noisy: Tensor, times: Tensor, tokens: Tokens, size: int) -> Tensor:
    config: Any = model.config
    added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if config.use_additional_conditions or (config.use_additional_conditions is None and config.sample_size == 128):
        added["resolution"] = noisy.new_tensor([[size, size]]).expand(len(noisy), -1)
        added["aspect_ratio"] = noisy.new_ones(len(noisy), 1)
    answer = model(
        noisy, encoder_hidden_states=tokens["states"], encoder_attention_mask=tokens["mask"], timestep=times,
        added_cond_kwargs=added, return_dict=False,
    )[0]  # fmt: skip
    return answer[:, : noisy.shape[1]]  # half of the channels may be a variance, which is not trained


# Captions as they are, at the size of the denoiser: what training reads.
_PLAIN = {"clean_caption": False, "use_resolution_binning": False}

FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": Family(_encode_sd, _answer_sd),
    "StableDiffusionXLPipeline": Family(_encode_xl, _answer_xl),
    "StableDiffusion3Pipeline": Family(_encode_sd3, _answer_sd3),
    "PixArtAlphaPipeline": Family(_encode_pixart, _answer_pixart, _PLAIN),
    "PixArtSigmaPipeline": Family(_encode_pixart, _answer_pixart, _PLAIN),
}
"""By the class of the pipeline, which model_index.json names."""


@dataclass(frozen=True)
class PipelineParts:
    """A pipeline without its denoiser: the components by name, and the settings of model_index.json."""

    pipeline_class: Any
    denoiser_name: str
    components: Mapping[str, Any]
    settings: Mapping[str, Any]
    _captions: dict[str, Tokens] = field(default_factory=dict)
    _latents: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    @property
    def family(self) -> Family:
        """How captions are encoded and the denoiser is asked."""
        return FAMILIES[self.pipeline_class.__name__]

    @property
    def scheduler(self) -> Any:
        """The schedule of the noise, of which a training target follows."""
        return self.components["scheduler"]

    def to(self, device: torch.device) -> "PipelineParts":
        """The parts on a device; their dtype stays, since they are used once per caption and image."""
        for part in self.components.values():
            if isinstance(part, nn.Module):
                part.to(device)
        return self

    def pipeline(self, model: nn.Module) -> Any:
        """The pipeline of diffusers around a denoiser, bare or with an adapter that peft has put into it."""
        bare = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
        takes = inspect.signature(self.pipeline_class.__init__).parameters
        given = {**self.components, self.denoiser_name: bare}
        # A safety checker, which is left out, and what a pipeline of this class may lack (SD3's third text encoder).
        lacks = [
            name for name, taken in takes.items() if taken.default is inspect.Parameter.empty and name not in given
        ]
        settings = {name: value for name, value in self.settings.items() if name in takes and name not in lacks}
        if "requires_safety_checker" in takes:
            settings["requires_safety_checker"] = False
        made = self.pipeline_class(**{name: None for name in lacks if name != "self"}, **settings, **given)
        made.set_progress_bar_config(disable=True)
        return made

    def image_size(self, model: nn.Module) -> int:
        """Height and width in pixels of the images that a denoiser was made for."""
        config: Any = model.config
        of_latents = config.sample_size
        of_latents = of_latents if isinstance(of_latents, int) else of_latents[0]
        return of_latents * 2 ** (len(self.components["vae"].config.block_out_channels) - 1)

    @torch.no_grad()
    def captions(self, pipeline: Any, texts: Sequence[str]) -> Tokens:
        """What the denoiser is told of captions, tensors [B, ...] by name; each caption is encoded once."""
        lost = list(dict.fromkeys(text for text in texts if text not in self._captions))
        found: dict[str, Tokens] = {}
        for start in range(0, len(lost), _AT_ONCE):
            chosen = lost[start : start + _AT_ONCE]
            encoded = {name: value.cpu() for name, value in self.family.encode(pipeline, chosen).items()}
            for i, text in enumerate(chosen):
                found[text] = {name: value[i].clone() for name, value in encoded.items()}
        rows = [found.get(text) or self._captions[text] for text in texts]
        for text, tokens in found.items():
            if _fits(len(self._captions), sum(value.nbytes for value in tokens.values())):
                self._captions[text] = tokens
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    @torch.no_grad()
    def latents(self, examples: Sequence[Example], size: int) -> Tensor:
        """The latents [B, C, H, W] of the images of examples, the mode of what the autoencoder says; each is read once."""
        found: dict[str, Tensor] = {}
        for example in examples:
            if example.image is None:
                raise TaskError(
                    f"the example {example.text[:60]!r} has no image, and this base draws images; give a task of images"
                )
            digest = example.image.digest
            if digest in found:
                continue
            kept = self._latents.get((digest, size))
            found[digest] = self._encoded(example, size) if kept is None else kept
            if kept is None and _fits(len(self._latents), found[digest].nbytes):
                self._latents[digest, size] = found[digest]
        return torch.stack([found[example.image.digest] for example in examples if example.image is not None])

    @torch.no_grad()
    def draw(
        self, model: nn.Module, captions: Sequence[str], seeds: Sequence[int], num_steps: int = 25,
        guidance_scale: float = 5.0,
    ) -> list[Image.Image]:  # fmt: skip
        """One image per caption from the noise of its own seed, by the pipeline's own scheduler, on any device the same."""
        pipeline = self.to(next(model.parameters()).device).pipeline(model)
        images: list[Image.Image] = []
        for start in range(0, len(captions), _AT_ONCE):
            chosen = slice(start, start + _AT_ONCE)
            rngs = [torch.Generator().manual_seed(seed) for seed in seeds[chosen]]
            made = pipeline(
                prompt=list(captions[chosen]), generator=rngs, num_inference_steps=num_steps,
                guidance_scale=guidance_scale, output_type="pil", **self.family.drawing,
            )  # fmt: skip
            images += made.images
        return images

    def _encoded(self, example: Example, size: int) -> Tensor:
        """The latents [C, H, W] of one image, on the CPU; TaskError where the file is not what the task says."""
        assert example.image is not None
        path = Path(example.image.path)
        try:
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != example.image.digest:
                raise ValueError("was changed since the task was read")
            pixels_SS3 = rgb_pixels(data, size)
        except OSError as error:
            raise TaskError(f"image {str(path)!r} cannot be read: {error.strerror}; read the task again") from None
        except ValueError as error:
            raise TaskError(f"image {str(path)!r} {error}; read the task again") from None
        vae = self.components["vae"]
        weight = next(vae.parameters())
        pixels_3SS = torch.from_numpy(np.array(pixels_SS3)).permute(2, 0, 1).to(weight) / 127.5 - 1
        latents_CHW = vae.encode(pixels_3SS[None]).latent_dist.mode()[0].float().cpu()
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        return (latents_CHW - shift) * vae.config.scaling_factor


def png(image: Image.Image) -> bytes:
    """An image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _fits(num_kept: int, num_bytes: int) -> bool:
    """Whether one more entry of a size is kept; entries of one base are of one size."""
    return (num_kept + 1) * num_bytes <= MAX_KEPT_BYTES
