"""The network of ORAL: positions and condition -> prototypes -> weight tokens, each denoised given its prototype.

Per adapter, once: prototypes_BLM = Mamba-2 layers over (position features + condition). Per sampling step: the denoiser
on every token. Letters: B adapters, L tokens, D token dim, P position features, M width, E text size, G model-condition
size.
"""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from oral_ray.adapters.tokens import POSITION_DIM
from oral_ray.config import ConvDenoiserConfig, DiffusionObjective, GeneratorConfig, SamplingConfig
from oral_ray.generator import diffusion
from oral_ray.generator.conv_denoiser import ConvDenoiser
from oral_ray.generator.data import Batch
from oral_ray.generator.denoiser import Denoiser
from oral_ray.generator.guidance import Branch, guidance_terms, guided, sum_weighted
from oral_ray.generator.spec import FunctionalItem, GeneratorSpec
from oral_ray.generator.ssm import Mamba2, MambaState, Scan

logger = logging.getLogger(__name__)


class Network(nn.Module):
    """The trainable part: condition projections, recurrent layers, denoiser."""

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        config = spec.generator
        assert isinstance(config, GeneratorConfig)  # LatentConfig is of LatentNetwork
        self.objective = config.objective
        self.position_in = nn.Linear(POSITION_DIM, config.width)
        self.text_in = nn.Sequential(
            nn.Linear(spec.text_dim, config.width), nn.SiLU(), nn.Linear(config.width, config.width)
        )
        self.model_in = nn.Sequential(
            nn.Linear(spec.model_dim, config.width), nn.SiLU(), nn.Linear(config.width, config.width)
        )
        self.no_text = nn.Parameter(torch.zeros(config.width))
        self.no_model = nn.Parameter(torch.zeros(config.width))
        self.layers = nn.ModuleList(RecurrentLayer(config) for _ in range(config.num_layers))
        if config.recurrent:
            level = logging.INFO if torch.cuda.is_available() else logging.DEBUG  # without CUDA there is no choice
            logger.log(level, "scan of the recurrent layers: %s", Scan.find(config.kernel))
        self.norm = nn.RMSNorm(config.width)
        self.denoiser = (
            ConvDenoiser(spec.token_dim, config.denoiser.channels, config.width)
            if isinstance(config.denoiser, ConvDenoiserConfig)
            else Denoiser(spec.token_dim, config.denoiser.width, config.denoiser.num_blocks, config.width)
        )

    def prototypes(
        self, position_BLP: Tensor, text_BE: Tensor, model_BG: Tensor, use_text_B: Tensor, use_model_B: Tensor,
        states: Sequence[MambaState | None] | None = None,
    ) -> tuple[Tensor, list[MambaState | None]]:  # fmt: skip
        """One prototype a token [B, L, M]; `use_*_B` False replaces that half of the condition by the learnt null."""
        text_BM = torch.where(use_text_B[:, None], self.text_in(text_BE), self.no_text)
        model_BM = torch.where(use_model_B[:, None], self.model_in(model_BG), self.no_model)
        hidden_BLM = self.position_in(position_BLP) + (text_BM + model_BM)[:, None]
        after: list[MambaState | None] = []
        for i, layer in enumerate(self.layers):
            hidden_BLM, state = layer(hidden_BLM, None if states is None else states[i])
            after.append(state)
        return self.norm(hidden_BLM), after

    @torch.no_grad()
    def states_before(
        self, before_BNWP: Tensor, num_before_B: Tensor, text_BE: Tensor, model_BG: Tensor, use_text_B: Tensor,
        use_model_B: Tensor,
    ) -> list[MambaState | None]:  # fmt: skip
        """The recurrence after the first `num_before_B` windows of each adapter, without gradients.

        So a window is trained on with the prototypes that it has in the whole adapter; the gradient ends at its start.
        """
        states: list[MambaState | None] = [None] * len(self.layers)
        for n in range(before_BNWP.shape[1]):
            _, after = self.prototypes(before_BNWP[:, n], text_BE, model_BG, use_text_B, use_model_B, states)
            states = [new and new.where(n < num_before_B, old) for new, old in zip(after, states, strict=True)]
        return states

    def loss(
        self, x0_BLD: Tensor, mask_BLD: Tensor, prototypes_BLM: Tensor, noise_BLD: Tensor, time_B: Tensor
    ) -> Tensor:
        """The training loss of one batch under the configured objective."""
        if not isinstance(self.objective, DiffusionObjective):
            return diffusion.masked_mse(self.regress(prototypes_BLM, x0_BLD.shape[-1]), x0_BLD, mask_BLD)
        schedule, prediction = self.objective.schedule, self.objective.prediction
        x_t = diffusion.add_noise(x0_BLD, noise_BLD, time_B, schedule) * mask_BLD
        raw = self.denoiser(x_t, prototypes_BLM, time_B)
        return diffusion.masked_mse(raw, diffusion.target(x0_BLD, noise_BLD, time_B, schedule, prediction), mask_BLD)

    def regress(self, prototypes_BLM: Tensor, token_dim: int) -> Tensor:
        """One deterministic step from nothing to tokens (the `regression` arm)."""
        empty = prototypes_BLM.new_zeros(*prototypes_BLM.shape[:2], token_dim)
        return self.denoiser(empty, prototypes_BLM, torch.ones(len(prototypes_BLM), device=empty.device))

    def forward(self, batch: Batch, functional: FunctionalItem | None = None, diffusion_weight: float = 1.0) -> Tensor:
        """The loss of one step: one call, so that every engine can wrap it.

        With a functional target, its task loss plus `diffusion_weight` times the corpus loss.
        """
        states = None
        if batch.before_BNWP.shape[1]:
            states = self.states_before(batch.before_BNWP, batch.num_before_B, *batch.condition)
        prototypes_BLM, _ = self.prototypes(batch.position_BLP, *batch.condition, states)
        loss = self.loss(batch.x0_BLD, batch.mask_BLD, prototypes_BLM, batch.noise_BLD, batch.time_B)
        if functional is None:
            return loss
        return functional.task_loss(self.one_step(functional)) + diffusion_weight * loss

    def one_step(self, asked: FunctionalItem) -> Tensor:
        """The estimate of normalised tokens from pure noise in a single step, with gradients."""
        yes = torch.ones(len(asked.mask_BLD), dtype=torch.bool, device=asked.mask_BLD.device)
        prototypes_BLM, _ = self.prototypes(asked.position_BLP, asked.text_BE, asked.model_BG, yes, yes)
        if not isinstance(self.objective, DiffusionObjective):
            return self.regress(prototypes_BLM, asked.mask_BLD.shape[-1]) * asked.mask_BLD
        x_t = asked.noise_BLD * asked.mask_BLD
        raw = self.denoiser(x_t, prototypes_BLM, torch.full((len(x_t),), diffusion.T_MAX, device=x_t.device))
        schedule, prediction = self.objective.schedule, self.objective.prediction
        return diffusion.to_x0(raw, x_t, diffusion.T_MAX, schedule, prediction) * asked.mask_BLD

    @torch.no_grad()
    def sample(
        self, position_BLP: Tensor, mask_BLD: Tensor, text_BE: Tensor, model_BG: Tensor,
        draw_noise: Callable[[], Tensor], sampling: SamplingConfig,
    ) -> Tensor:  # fmt: skip
        """Normalised tokens [B, L, D]. `draw_noise()` gives unit noise [B, L, D], adapter i from its own stream."""
        branches: list[tuple[float, Tensor]] = [
            (weight, self.prototypes(position_BLP, text_BE, model_BG, use_text_B, use_model_B)[0])
            for weight, use_text_B, use_model_B in guidance_terms(sampling, mask_BLD)
        ]
        return self.sample_tokens(branches, mask_BLD, draw_noise, sampling)

    @torch.no_grad()
    def sample_tokens(
        self, branches: Sequence[tuple[float, Tensor]], mask_BLD: Tensor, draw_noise: Callable[[], Tensor],
        sampling: SamplingConfig,
    ) -> Tensor:  # fmt: skip
        """Normalised tokens [B, L, D], float32, from the prototypes [B, L, M] of each term of guidance and its weight."""
        if not isinstance(self.objective, DiffusionObjective):
            token_dim = mask_BLD.shape[-1]
            return sum_weighted([(weight, self.regress(z, token_dim).float()) for weight, z in branches]) * mask_BLD
        denoise = guided([(weight, self._branch(z)) for weight, z in branches], self.objective)
        return mask_BLD * diffusion.sample(
            lambda x_BLD, t: denoise(x_BLD * mask_BLD, t),
            draw_noise, sampling.sampler, sampling.num_steps, self.objective.schedule,
        )  # fmt: skip

    def _branch(self, prototypes_BLM: Tensor) -> Branch:
        """The denoiser given prototypes. Products are of the network's number format, the sampler's sums float32."""

        def raw(x_BLD: Tensor, time_B: Tensor) -> Tensor:
            return self.denoiser(x_BLD.to(prototypes_BLM.dtype), prototypes_BLM, time_B).float()

        return raw


class RecurrentLayer(nn.Module):
    """Pre-norm residual Mamba-2; without recurrence (an ablation) a gated MLP of about the same size."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.width)
        self.mixer = (
            Mamba2(config.width, config.state_dim, config.head_dim, config.chunk_size, config.kernel)
            if config.recurrent
            else nn.Sequential(
                nn.Linear(config.width, 3 * config.width), nn.SiLU(), nn.Linear(3 * config.width, config.width)
            )
        )

    def forward(self, hidden_BLM: Tensor, state: MambaState | None) -> tuple[Tensor, MambaState | None]:
        if isinstance(self.mixer, Mamba2):
            mixed, state = self.mixer(self.norm(hidden_BLM), state)
            return hidden_BLM + mixed, state
        return hidden_BLM + self.mixer(self.norm(hidden_BLM)), None
