"""The baseline Cond P-Diff (Jin et al., arXiv 2408.01415): an autoencoder of flattened adapters, conditional diffusion of
its latents. Behind the same interface as `Network`, on the same data, conditions, losses and budget.

The autoencoder is a stack of strided 1-D convolutions, as in P-Diff (arXiv 2402.13144, section 3), with its noise on
input and latent. The paper trains it first and the diffusion after it; here both learn in every step, the diffusion on
latents that pass no gradient back, so that a step costs and means the same as one of `Network`. It knows one layout: a
flat vector has one length.

Letters: B adapters, L tokens, D token dim, N = L x D values, C channels, Z length of the latent, W width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from oral_ray.config import DiffusionObjective, LatentConfig, SamplingConfig
from oral_ray.errors import GeneratorError
from oral_ray.generator import diffusion
from oral_ray.generator.data import Batch
from oral_ray.generator.denoiser import TIME_FEATURES, time_features
from oral_ray.generator.guidance import Branch, guidance_terms, guided
from oral_ray.generator.spec import FunctionalItem, GeneratorSpec

INPUT_NOISE, LATENT_NOISE = 0.001, 0.1
LATENT_MOMENTUM = 0.02


class LatentNetwork(nn.Module):
    """The trainable part: autoencoder, condition projections, latent denoiser."""

    latent_mean: Tensor
    latent_scale: Tensor

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        config = spec.generator
        if not (
            isinstance(config, LatentConfig) and isinstance(config.objective, DiffusionObjective) and spec.num_tokens
        ):
            raise GeneratorError(
                "a latent generator needs one layout and the diffusion objective; change generator.kind"
            )
        self.objective, self._shape = config.objective, (spec.num_tokens, spec.token_dim)
        stride = config.patch * config.stride**config.num_layers
        self._latent_length = -(-spec.num_tokens * spec.token_dim // stride)
        self._num_values = self._latent_length * stride
        self.encoder, self.decoder = _encoder(config), _decoder(config)
        self.text_in = nn.Linear(spec.text_dim, config.width)
        self.model_in = nn.Linear(spec.model_dim, config.width)
        self.time_in = nn.Linear(2 * TIME_FEATURES, config.width)
        self.no_text = nn.Parameter(torch.zeros(config.width))
        self.no_model = nn.Parameter(torch.zeros(config.width))
        self.latent_in = nn.Conv1d(config.latent_channels, config.width, 5, padding=2)
        self.blocks = nn.ModuleList(_LatentBlock(config.width) for _ in range(config.num_blocks))
        self.latent_out = nn.Conv1d(config.width, config.latent_channels, 5, padding=2)
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels, 1))
        self.register_buffer("latent_scale", torch.ones(config.latent_channels, 1))

    def forward(self, batch: Batch, functional: FunctionalItem | None = None, diffusion_weight: float = 1.0) -> Tensor:
        """Reconstruction of the flattened adapter plus diffusion of its latent, as `Network.forward`; whole adapters."""
        x0_BLD, mask_BLD, noise_BLD, time_B = batch.x0_BLD, batch.mask_BLD, batch.noise_BLD, batch.time_B
        noise_BCZ, other_BCZ = self._latent_noise(noise_BLD), self._latent_noise(noise_BLD.flip(1))
        raw_BCZ = self.encoder(self._flat(x0_BLD * mask_BLD) + INPUT_NOISE * self._flat(noise_BLD))
        if torch.is_grad_enabled():
            self._follow(raw_BCZ.detach())
        latent_BCZ = (raw_BCZ - self.latent_mean) / self.latent_scale
        decoded_BLD = self._decode(latent_BCZ + LATENT_NOISE * other_BCZ)
        loss = diffusion.masked_mse(decoded_BLD, x0_BLD, mask_BLD)
        z0_BCZ, schedule, prediction = latent_BCZ.detach(), self.objective.schedule, self.objective.prediction
        z_t = diffusion.add_noise(z0_BCZ, noise_BCZ, time_B, schedule)
        condition_BW = self._condition(*batch.condition)
        wanted = diffusion.target(z0_BCZ, noise_BCZ, time_B, schedule, prediction)
        loss = loss + (self._denoise(z_t, condition_BW, time_B).float() - wanted).square().mean()
        if functional is None:
            return loss
        return functional.task_loss(self.one_step(functional)) + diffusion_weight * loss

    def one_step(self, asked: FunctionalItem) -> Tensor:
        """The estimate of normalised tokens from pure noise in a single step, with gradients."""
        yes = torch.ones(len(asked.mask_BLD), dtype=torch.bool, device=asked.mask_BLD.device)
        condition_BW = self._condition(asked.text_BE, asked.model_BG, yes, yes)
        noise_BCZ = self._latent_noise(asked.noise_BLD)
        time_B = torch.full((len(yes),), diffusion.T_MAX, device=yes.device)
        raw = self._denoise(noise_BCZ, condition_BW, time_B)
        schedule, prediction = self.objective.schedule, self.objective.prediction
        return self._decode(diffusion.to_x0(raw, noise_BCZ, diffusion.T_MAX, schedule, prediction)) * asked.mask_BLD

    @torch.no_grad()
    def sample(
        self, position_BLP: Tensor, mask_BLD: Tensor, text_BE: Tensor, model_BG: Tensor,
        draw_noise: Callable[[], Tensor], sampling: SamplingConfig,
    ) -> Tensor:  # fmt: skip
        """Normalised tokens [B, L, D], as `Network.sample`; GeneratorError for another layout than the trained one."""
        if tuple(mask_BLD.shape[1:]) != self._shape:
            raise GeneratorError(
                f"a latent generator knows adapters of {self._shape} tokens only, this one has "
                f"{tuple(mask_BLD.shape[1:])}; use the per-token generator"
            )
        branches: list[tuple[float, Branch]] = []
        for weight, use_text_B, use_model_B in guidance_terms(sampling, mask_BLD):
            branches.append((weight, self._branch(self._condition(text_BE, model_BG, use_text_B, use_model_B))))
        latent_BCZ = diffusion.sample(
            guided(branches, self.objective), lambda: self._latent_noise(draw_noise()), sampling.sampler,
            sampling.num_steps, self.objective.schedule,
        )  # fmt: skip
        return self._decode(latent_BCZ) * mask_BLD

    def _branch(self, condition_BW: Tensor) -> Branch:
        return lambda z_BCZ, time_B: self._denoise(z_BCZ, condition_BW, time_B)

    def _condition(self, text_BE: Tensor, model_BG: Tensor, use_text_B: Tensor, use_model_B: Tensor) -> Tensor:
        text_BW = torch.where(use_text_B[:, None], self.text_in(text_BE), self.no_text)
        return text_BW + torch.where(use_model_B[:, None], self.model_in(model_BG), self.no_model)

    def _denoise(self, z_BCZ: Tensor, condition_BW: Tensor, time_B: Tensor) -> Tensor:
        condition_BW = F.silu(condition_BW + self.time_in(time_features(time_B).to(condition_BW.dtype)))
        hidden_BWZ = self.latent_in(z_BCZ)
        for block in self.blocks:
            hidden_BWZ = block(hidden_BWZ, condition_BW)
        return self.latent_out(F.silu(hidden_BWZ))

    def _decode(self, latent_BCZ: Tensor) -> Tensor:
        flat_BN = self.decoder(latent_BCZ * self.latent_scale + self.latent_mean)[:, 0]
        num_tokens, token_dim = self._shape
        return flat_BN[:, : num_tokens * token_dim].reshape(len(flat_BN), num_tokens, token_dim)

    def _flat(self, values_BLD: Tensor) -> Tensor:
        """[B, 1, N], padded with zeros to what the strides need."""
        flat_BN = values_BLD.flatten(1)
        return F.pad(flat_BN, (0, self._num_values - flat_BN.shape[1]))[:, None]

    def _latent_noise(self, noise_BLD: Tensor) -> Tensor:
        """Unit noise [B, C, Z] out of an adapter's own stream of unit noise."""
        shape = (len(noise_BLD), len(self.latent_mean), self._latent_length)
        return noise_BLD.flatten(1)[:, : shape[1] * shape[2]].reshape(shape)

    @torch.no_grad()
    def _follow(self, latent_BCZ: Tensor) -> None:
        """Running mean and spread of the latent's channels, so that the diffusion sees values of order one."""
        by_channel = latent_BCZ.float().transpose(0, 1).flatten(1)
        self.latent_mean.lerp_(by_channel.mean(1, keepdim=True), LATENT_MOMENTUM)
        self.latent_scale.lerp_(by_channel.std(1, keepdim=True).clamp(min=1e-6), LATENT_MOMENTUM)


class _LatentBlock(nn.Module):
    """Residual 1-D convolutions with a scale and a shift from the condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.first, self.second = (nn.Conv1d(width, width, 5, padding=2) for _ in range(2))
        self.modulation = nn.Linear(width, 2 * width)
        nn.init.zeros_(self.second.weight)

    def forward(self, hidden_BWZ: Tensor, condition_BW: Tensor) -> Tensor:
        shift_BW, scale_BW = self.modulation(condition_BW).chunk(2, dim=-1)
        update = self.first(F.silu(self.norm(hidden_BWZ) * (1 + scale_BW[..., None]) + shift_BW[..., None]))
        return hidden_BWZ + self.second(F.silu(update))


def _encoder(config: LatentConfig) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv1d(1, config.channels, config.patch, stride=config.patch)]
    for _ in range(config.num_layers):
        layers += [nn.SiLU(), nn.Conv1d(config.channels, config.channels, config.stride, stride=config.stride)]
    return nn.Sequential(*layers, nn.SiLU(), nn.Conv1d(config.channels, config.latent_channels, 3, padding=1))


def _decoder(config: LatentConfig) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv1d(config.latent_channels, config.channels, 3, padding=1)]
    for _ in range(config.num_layers):
        layers += [nn.SiLU(), nn.ConvTranspose1d(config.channels, config.channels, config.stride, stride=config.stride)]
    return nn.Sequential(*layers, nn.SiLU(), nn.ConvTranspose1d(config.channels, 1, config.patch, stride=config.patch))
