"""Tiny text-to-image pipelines with random weights, made at test time, and folders of captioned images."""

import json
from pathlib import Path

import numpy as np
import torch
from conftest import save_tokenizer
from PIL import Image

CAPTIONS = tuple(f"a {size} {colour} {thing}" for size in ("big", "small") for colour in ("red", "green", "cold", "warm")
                 for thing in ("dog", "cat", "bird", "stone"))  # fmt: skip


def make_pipeline(
    folder: Path, prediction_type: str = "epsilon", scheduler: str = "DDIMScheduler", seed: int = 0
) -> Path:
    """A StableDiffusionPipeline of 16 x 16 pixels and 8 x 8 latents, saved as diffusers saves it."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = save_tokenizer(
        folder.parent / f"{folder.name}-tokenizer", ("[CLS] $A [SEP]", [("[CLS]", 2), ("[SEP]", 3)])
    )
    tokenizer.model_max_length = 12
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = diffusers.UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16, attention_head_dim=2, norm_num_groups=4,
        )  # fmt: skip
        vae = diffusers.AutoencoderKL(
            block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=16,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        )  # fmt: skip
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                num_attention_heads=2, max_position_embeddings=12, pad_token_id=0, bos_token_id=2, eos_token_id=3,
            )
        )  # fmt: skip
    made = getattr(diffusers, scheduler)(prediction_type=prediction_type, beta_schedule="scaled_linear")
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae, unet=unet, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=made, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


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
