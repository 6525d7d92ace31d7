"""Diffusion as free functions: noise schedule, training target, loss, samplers. Any network fits.

Forward process x_t = alpha_t x_0 + sigma_t eps with alpha^2 + sigma^2 = 1, time t in [0, 1].
Cosine schedule: alpha_t = cos(pi t / 2) (Nichol & Dhariwal, arXiv 2102.09672, in the continuous form of Salimans & Ho,
arXiv 2202.00512). Linear schedule: the continuous limit of Ho et al.'s betas 1e-4 .. 0.02 over 1000 steps,
log alpha_t = -(0.1 t + 19.9 t^2 / 2) / 2 (Song et al., arXiv 2011.13456, eq. 29-33).
v = alpha eps - sigma x_0 (Salimans & Ho, appendix D).

Letters: B adapters, L tokens, D token dim. A `Denoise` maps (x_t [B, L, D], t: float) to an estimate of x_0.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

Schedule = Literal["cosine", "linear"]
Prediction = Literal["v", "eps", "x0"]
Denoise = Callable[[Tensor, float], Tensor]
T_MIN, T_MAX = 1e-3, 0.999


def alpha_sigma(t: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Signal and noise levels (alpha_t, sigma_t) in float64."""
    t = t.double()
    if schedule == "cosine":
        return torch.cos(math.pi / 2 * t), torch.sin(math.pi / 2 * t)
    alpha = torch.exp(-0.25 * t**2 * 19.9 - 0.5 * t * 0.1)
    return alpha, (1 - alpha**2).sqrt()


def add_noise(x0: Tensor, noise: Tensor, t_B: Tensor, schedule: Schedule) -> Tensor:
    """x_t = alpha_t x_0 + sigma_t eps, one time an adapter."""
    alpha, sigma = (level.to(x0)[:, None, None] for level in alpha_sigma(t_B, schedule))
    return alpha * x0 + sigma * noise


def target(x0: Tensor, noise: Tensor, t_B: Tensor, schedule: Schedule, prediction: Prediction) -> Tensor:
    """What the network learns to predict: eps, x_0, or v = alpha eps - sigma x_0."""
    if prediction == "eps":
        return noise
    if prediction == "x0":
        return x0
    alpha, sigma = (level.to(x0)[:, None, None] for level in alpha_sigma(t_B, schedule))
    return alpha * noise - sigma * x0


def to_x0(raw: Tensor, x_t: Tensor, t: float, schedule: Schedule, prediction: Prediction) -> Tensor:
    """The estimate of x_0 that a raw network output stands for."""
    if prediction == "x0":
        return raw
    alpha, sigma = (float(level) for level in alpha_sigma(torch.tensor(t), schedule))
    return (x_t - sigma * raw) / alpha if prediction == "eps" else alpha * x_t - sigma * raw


def masked_mse(predicted: Tensor, wanted: Tensor, mask_BLD: Tensor) -> Tensor:
    """Mean squared error over the values of each adapter (padding counts nothing), then over adapters."""
    error = torch.where(mask_BLD, predicted.float() - wanted.float(), 0.0).square()
    return (error.sum((1, 2)) / mask_BLD.sum((1, 2)).clamp(min=1)).mean()


def sample_times(num: int, high_noise_bias: float, rng: torch.Generator) -> Tensor:
    """Training times t = u^(1 / bias): a bias of 1 is uniform, a larger one trains mostly where noise is high.

    One uniform draw shifted by i/num, so that a batch covers all levels evenly (Kingma et al., arXiv 2107.00630). With few
    checkpoints a condition the conditional spread is small, and what matters is the estimate from almost pure noise.
    """
    u = (torch.rand((), generator=rng) + torch.arange(num) / num) % 1.0
    return T_MIN + (T_MAX - T_MIN) * u ** (1 / high_noise_bias)


def time_grid(num_steps: int) -> list[float]:
    """num_steps + 1 times from T_MAX down to 0, evenly spaced."""
    return [T_MAX * (1 - i / num_steps) for i in range(num_steps)] + [0.0]


def ddim(denoise: Denoise, noise: Tensor, times: Sequence[float], schedule: Schedule) -> Tensor:
    """Deterministic DDIM (Song et al., arXiv 2010.02502, eq. 12 with sigma = 0)."""
    x = noise
    for now, then in itertools.pairwise(times):
        x0 = denoise(x, now)
        (alpha_now, sigma_now), (alpha_then, sigma_then) = _levels(now, schedule), _levels(then, schedule)
        x = alpha_then * x0 + sigma_then * (x - alpha_now * x0) / sigma_now
    return x


def ddpm(
    denoise: Denoise, noise: Tensor, times: Sequence[float], schedule: Schedule, draw_noise: Callable[[], Tensor]
) -> Tensor:
    """Ancestral sampling from q(x_s | x_t, x_0) (Ho et al., arXiv 2006.11239, eq. 6-7, for any pair s < t).

    `draw_noise()` gives fresh unit noise of the same shape.
    """
    x = noise
    for now, then in itertools.pairwise(times):
        x0 = denoise(x, now)
        (alpha_now, sigma_now), (alpha_then, sigma_then) = _levels(now, schedule), _levels(then, schedule)
        ratio = alpha_now / alpha_then  # alpha_{t|s}
        beta = 1 - ratio**2  # variance added between s and t
        mean = (ratio * sigma_then**2 * x + alpha_then * beta * x0) / sigma_now**2
        spread = sigma_then * math.sqrt(max(beta, 0.0)) / sigma_now
        x = mean + spread * draw_noise() if then > 0 else mean
    return x


def dpmpp_2m(denoise: Denoise, noise: Tensor, times: Sequence[float], schedule: Schedule) -> Tensor:
    """DPM-Solver++(2M) (Lu et al., arXiv 2211.01095, Algorithm 2), with lambda = log(alpha / sigma).

    The first and the last step are of first order: there is no earlier estimate, and lambda(0) is infinite.
    """
    x = noise
    last_x0: Tensor | None = None
    last_h = 0.0
    for now, then in itertools.pairwise(times):
        x0 = denoise(x, now)
        (alpha_now, sigma_now), (alpha_then, sigma_then) = _levels(now, schedule), _levels(then, schedule)
        if then == 0.0:
            return x0
        h = math.log(alpha_then / sigma_then) - math.log(alpha_now / sigma_now)
        d = x0
        if last_x0 is not None:
            r = last_h / h
            d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * last_x0
        x = (sigma_then / sigma_now) * x - alpha_then * math.expm1(-h) * d
        last_x0, last_h = x0, h
    return x


def sample(
    denoise: Denoise, draw_noise: Callable[[], Tensor], sampler: Literal["ddpm", "ddim", "dpmpp"], num_steps: int,
    schedule: Schedule,
) -> Tensor:  # fmt: skip
    """From the first draw of noise to a sample, by the sampler of that name."""
    times = time_grid(num_steps)
    if sampler == "ddpm":
        return ddpm(denoise, draw_noise(), times, schedule, draw_noise)
    return (ddim if sampler == "ddim" else dpmpp_2m)(denoise, draw_noise(), times, schedule)


def _levels(t: float, schedule: Schedule) -> tuple[float, float]:
    alpha, sigma = alpha_sigma(torch.tensor(t, dtype=torch.float64), schedule)
    return float(alpha), float(sigma)
