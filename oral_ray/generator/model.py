"""The generator: positions and condition -> prototypes -> weight tokens; its checkpoint on disk.

Per adapter, once: prototypes_BLM = Mamba-2 layers over (position features + condition). Per sampling step: the denoiser
on every token, given its prototype. A checkpoint is a folder of `generator.safetensors` (weights and statistics),
`generator.json` (everything that is no tensor); loading is strict.

Letters: B adapters, L tokens, D token dim, P position features, M width, E text size, G model-condition size.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from oral_ray.adapters.tokens import POSITION_DIM, TokenStats
from oral_ray.config import ConditionConfig, DiffusionObjective, GeneratorConfig, SamplingConfig, Section, derive_seed
from oral_ray.errors import GeneratorError
from oral_ray.generator import diffusion
from oral_ray.generator.condition import ProbeStats
from oral_ray.generator.denoiser import Denoiser
from oral_ray.generator.ssm import Mamba2, MambaState

WEIGHTS, DESCRIPTION = "generator.safetensors", "generator.json"


class GeneratorSpec(Section):
    """Everything that is no tensor: sizes, condition settings, what it was trained on."""

    generator: GeneratorConfig
    condition: ConditionConfig
    token_dim: int
    text_dim: int
    model_dim: int
    text_encoder_fingerprint: str
    architectures: tuple[str, ...]
    recipe: str


@dataclass(frozen=True, slots=True)
class FunctionalItem:
    """One functional step (see oral_ray/functional.py): what the generator is asked, and the loss of its answer.

    All tensors have B = 1.
    """

    position_BLP: Tensor
    mask_BLD: Tensor
    text_BE: Tensor
    model_BG: Tensor
    noise_BLD: Tensor
    task_loss: Callable[[Tensor], Tensor]


class Network(nn.Module):
    """The trainable part: condition projections, recurrent layers, denoiser."""

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        config = spec.generator
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
        self.norm = nn.RMSNorm(config.width)
        self.denoiser = Denoiser(spec.token_dim, config.denoiser_width, config.denoiser_blocks, config.width)

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

    def forward(
        self, x0_BLD: Tensor, mask_BLD: Tensor, position_BLP: Tensor, text_BE: Tensor, model_BG: Tensor,
        use_text_B: Tensor, use_model_B: Tensor, noise_BLD: Tensor, time_B: Tensor,
        functional: FunctionalItem | None = None, diffusion_weight: float = 1.0,
    ) -> Tensor:  # fmt: skip
        """The loss of one step: one call, so that every engine can wrap it.

        With a functional target, its task loss plus `diffusion_weight` times the corpus loss.
        """
        prototypes_BLM, _ = self.prototypes(position_BLP, text_BE, model_BG, use_text_B, use_model_B)
        loss = self.loss(x0_BLD, mask_BLD, prototypes_BLM, noise_BLD, time_B)
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
        """Normalised tokens [B, L, D]. `draw_noise()` gives unit noise [B, L, D], adapter i from its own stream.

        Guidance (Ho & Salimans, arXiv 2207.12598) on each half of the condition:
        x0 = x0(-,-) + s_model (x0(-,m) - x0(-,-)) + s_text (x0(t,m) - x0(-,m)).
        """
        yes = torch.ones(len(mask_BLD), dtype=torch.bool, device=mask_BLD.device)
        branches: list[tuple[float, Tensor]] = []
        s_text, s_model = sampling.guidance_text, sampling.guidance_model
        for weight, use_text, use_model in (
            (s_text, yes, yes),
            (s_model - s_text, ~yes, yes),
            (1 - s_model, ~yes, ~yes),
        ):
            if weight != 0.0:
                branches.append((weight, self.prototypes(position_BLP, text_BE, model_BG, use_text, use_model)[0]))
        if not isinstance(self.objective, DiffusionObjective):
            return sum_weighted([(w, self.regress(z, mask_BLD.shape[-1])) for w, z in branches]) * mask_BLD
        schedule, prediction = self.objective.schedule, self.objective.prediction

        def denoise(x: Tensor, t: float) -> Tensor:
            x = x * mask_BLD
            time_B = torch.full((len(x),), t, device=x.device)
            raw = [(w, self.denoiser(x, z, time_B)) for w, z in branches]
            return sum_weighted([(w, diffusion.to_x0(r, x, t, schedule, prediction)) for w, r in raw])

        times = diffusion.time_grid(sampling.num_steps)
        if sampling.sampler == "ddpm":
            return diffusion.ddpm(denoise, draw_noise(), times, schedule, draw_noise) * mask_BLD
        sampler = diffusion.ddim if sampling.sampler == "ddim" else diffusion.dpmpp_2m
        return sampler(denoise, draw_noise(), times, schedule) * mask_BLD


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


@dataclass(frozen=True, slots=True)
class Generator:
    """A network with the statistics it was trained under; what `AdapterFactory` samples from."""

    spec: GeneratorSpec
    network: Network
    token_stats: TokenStats
    probe_stats: ProbeStats


def build_network(spec: GeneratorSpec, seed: int) -> Network:
    """A freshly initialised network; the initialisation depends on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "generator-init"))
        return Network(spec)


def sum_weighted(terms: list[tuple[float, Tensor]]) -> Tensor:
    """Sum of weight * tensor; a single term of weight 1 is returned as it is."""
    if len(terms) == 1 and terms[0][0] == 1.0:
        return terms[0][1]
    return torch.stack([weight * term for weight, term in terms]).sum(0)


def save_generator(generator: Generator, folder: Path) -> None:
    """Write a checkpoint folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"network.{name}": t.detach().cpu().contiguous() for name, t in generator.network.state_dict().items()}
    tensors |= {f"mean.{digest}": mean for digest, mean in generator.token_stats.means.items()}
    for part in ("mean", "axes", "spread"):
        tensors |= {f"probe.{part}.{arch}": t for arch, t in getattr(generator.probe_stats, part).items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    scales = [[role, factor, list(map(list, rows))] for (role, factor), rows in generator.token_stats.scales.items()]
    description = {"spec": generator.spec.model_dump(mode="json"), "scales": scales}
    (folder / DESCRIPTION).write_text(json.dumps(description, sort_keys=True, indent=1), encoding="utf-8")


def load_generator(folder: Path) -> Generator:
    """Read a checkpoint folder; GeneratorError for anything missing, extra or of another shape."""
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        spec = GeneratorSpec.model_validate(description["spec"])
        tensors = load_file(folder / WEIGHTS)
        scales = {
            (role, factor): tuple((float(depth), float(scale)) for depth, scale in rows)
            for role, factor, rows in description["scales"]
        }
    except FileNotFoundError as error:
        raise GeneratorError(f"no generator at {folder}: {Path(error.filename or WEIGHTS).name} is missing") from None
    except (ValueError, KeyError, TypeError, SafetensorError, ValidationError) as error:
        raise GeneratorError(f"generator at {folder} is damaged: {' '.join(str(error).split())[:300]}") from None

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

    network = build_network(spec, seed=0)
    try:
        network.load_state_dict(part("network."), strict=True)
    except RuntimeError as error:
        raise GeneratorError(f"generator at {folder} does not fit its own description: {error}") from None
    stats = ProbeStats(part("probe.mean."), part("probe.axes."), part("probe.spread."))
    odd = [name for name in tensors if not name.startswith(("network.", "mean.", "probe."))]
    odd += sorted((stats.mean.keys() ^ stats.axes.keys()) | (stats.mean.keys() ^ stats.spread.keys()))
    if odd:
        raise GeneratorError(f"generator at {folder} does not fit its own description: {odd[0]!r} is lost or unknown")
    return Generator(spec, network.eval(), TokenStats(scales, part("mean.")), stats)
