"""Tiny text-to-image pipelines with random weights, made at test time, and folders of captioned images."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import save_tokenizer
from PIL import Image

CAPTIONS = tuple(f"a {size} {colour} {thing}" for size in ("big", "small") for colour in ("red", "green", "cold", "warm")
                 for thing in ("dog", "cat", "bird", "stone"))  # fmt: skip


def make_pipeline(folder: Path, prediction_type: str = "epsilon") -> Path:
    """A StableDiffusionPipeline of 16 x 16 pixels and 8 x 8 latents, saved as diffusers saves it."""
    import diffusers

    tokenizer, text_encoder = _text_encoder(folder.parent / f"{folder.name}-tokenizer", "CLIPTextModel")
    pipeline = diffusers.StableDiffusionPipeline(
        vae=_vae(), unet=_unet(cross_attention_dim=16), text_encoder=text_encoder, tokenizer=tokenizer,
        scheduler=diffusers.DDIMScheduler(prediction_type=prediction_type, beta_schedule="scaled_linear"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def make_xl_pipeline(folder: Path) -> Path:
    """A StableDiffusionXLPipeline of the same sizes, with two text encoders and the scheduler of the published one."""
    import diffusers

    first = _text_encoder(folder.parent / f"{folder.name}-tokenizer", "CLIPTextModel")
    second = _text_encoder(folder.parent / f"{folder.name}-tokenizer-2", "CLIPTextModelWithProjection")
    unet = _unet(
        cross_attention_dim=32, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )  # fmt: skip
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=_vae(), unet=unet, tokenizer=first[0], text_encoder=first[1], tokenizer_2=second[0], text_encoder_2=second[1],
        scheduler=diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear"), add_watermarker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def make_sd3_pipeline(folder: Path) -> Path:
    """A StableDiffusion3Pipeline of the same sizes without its third text encoder."""
    import diffusers

    class_name = "CLIPTextModelWithProjection"
    first, second = (_text_encoder(folder.parent / f"{folder.name}-{i}", class_name) for i in range(2))
    with _seeded():
        transformer = diffusers.SD3Transformer2DModel(
            sample_size=8, patch_size=1, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=32,
            pos_embed_max_size=8,
        )  # fmt: skip
    pipeline = diffusers.StableDiffusion3Pipeline(
        vae=_vae(shift_factor=0.1), transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        tokenizer=first[0], text_encoder=first[1], tokenizer_2=second[0], text_encoder_2=second[1], tokenizer_3=None,
        text_encoder_3=None,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def make_pixart_pipeline(folder: Path) -> Path:
    """A PixArtSigmaPipeline of the same sizes, whose transformer also tells a variance, with a T5 encoder."""
    import diffusers
    import transformers

    tokenizer, _ = _text_encoder(folder.parent / f"{folder.name}-tokenizer", "CLIPTextModel")
    config = transformers.T5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=3,
    )
    with _seeded():
        text_encoder = transformers.T5EncoderModel(config)
        transformer = diffusers.PixArtTransformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, out_channels=8, num_layers=2, attention_head_dim=8,
            num_attention_heads=2, cross_attention_dim=16, caption_channels=16,
        )  # fmt: skip
    pipeline = diffusers.PixArtSigmaPipeline(
        tokenizer=tokenizer, text_encoder=text_encoder, vae=_vae(), transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_schedule="scaled_linear"),
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def _unet(**settings: Any) -> Any:
    import diffusers

    with _seeded():
        return diffusers.UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=2, norm_num_groups=4, **settings,
        )  # fmt: skip


def _vae(**settings: Any) -> Any:
    import diffusers

    with _seeded():
        return diffusers.AutoencoderKL(
            block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=16,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **settings,
        )  # fmt: skip


def _text_encoder(folder: Path, class_name: str) -> tuple[Any, Any]:
    """A tokenizer and a CLIP text encoder over it."""
    import transformers

    tokenizer = save_tokenizer(folder, ("[CLS] $A [SEP]", [("[CLS]", 2), ("[SEP]", 3)]))
    tokenizer.model_max_length = 12
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=12, pad_token_id=0, bos_token_id=2, eos_token_id=3, projection_dim=16,
    )  # fmt: skip
    with _seeded():
        return tokenizer, getattr(transformers, class_name)(config)


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def image_folder(folder: Path, captions: tuple[str, ...] = CAPTIONS, size: int = 16) -> Path:
    """One small image per caption, all in one style: stripes."""
    folder.mkdir(parents=True)
    (folder / "task.toml").write_text('style = "striped pictures"\nname = "stripes"\n')
    rng, lines = np.random.default_rng(0), []
    for i, caption in enumerate(captions):
        pixels = np.zeros((size, size, 3), np.uint8)
        pixels[::2] = rng.integers(128, 256, 3)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": caption, "artist": "nobody"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder
