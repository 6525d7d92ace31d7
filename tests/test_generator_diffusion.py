"""Diffusion: schedule, conversions, samplers against closed forms, masked loss."""

import itertools
import math

import pytest
import torch
from factory_fixtures import randn
from torch import Tensor

from oral_ray.generator.diffusion import (
    T_MAX,
    T_MIN,
    Denoise,
    Prediction,
    Schedule,
    add_noise,
    alpha_sigma,
    ddim,
    ddpm,
    dpmpp_2m,
    masked_mse,
    sample_times,
    target,
    time_grid,
    to_x0,
)

SCHEDULES: tuple[Schedule, ...] = ("cosine", "linear")
MEAN, SPREAD = 1.5, 0.4


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedule_preserves_variance_and_runs_from_data_to_noise(schedule: Schedule) -> None:
    alpha, sigma = alpha_sigma(torch.linspace(0, 1, 101), schedule)
    assert torch.allclose(alpha**2 + sigma**2, torch.ones(101, dtype=torch.float64), atol=1e-12)
    assert (alpha.diff() < 0).all() and (sigma.diff() > 0).all()
    assert alpha[0] == 1 and sigma[0] == 0 and alpha[-1] < 0.01


def test_linear_schedule_is_the_limit_of_the_betas_of_ddpm() -> None:
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    wanted = (1 - betas).cumprod(0).sqrt()
    found, _ = alpha_sigma(torch.arange(1, 1001) / 1000, "linear")
    assert torch.allclose(found, wanted, atol=3e-3)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", ["v", "eps", "x0"])
@pytest.mark.parametrize("t", [T_MIN, 0.3, 0.9])
def test_a_perfect_prediction_gives_back_the_data(schedule: Schedule, prediction: Prediction, t: float) -> None:
    x0, noise, time_B = randn(3, 4, 5), randn(3, 4, 5, seed=1), torch.full((3,), t, dtype=torch.float64)
    x_t = add_noise(x0, noise, time_B, schedule)
    raw = target(x0, noise, time_B, schedule, prediction)
    assert torch.allclose(to_x0(raw, x_t, t, schedule, prediction), x0, atol=1e-3)


def test_v_is_alpha_eps_minus_sigma_x0_and_every_adapter_has_its_own_time() -> None:
    x0, noise, time_B = randn(2, 3, 4), randn(2, 3, 4, seed=1), torch.tensor([0.25, 0.75])
    x_t, v = add_noise(x0, noise, time_B, "cosine"), target(x0, noise, time_B, "cosine", "v")
    for i, angle in enumerate((math.pi / 8, 3 * math.pi / 8)):
        assert torch.allclose(x_t[i], math.cos(angle) * x0[i] + math.sin(angle) * noise[i], atol=1e-6)
        assert torch.allclose(v[i], math.cos(angle) * noise[i] - math.sin(angle) * x0[i], atol=1e-6)


def gaussian_denoiser(schedule: Schedule) -> Denoise:
    """E[x_0 | x_t] of N(MEAN, SPREAD^2): what a perfect network would answer."""

    def denoise(x: Tensor, t: float) -> Tensor:
        alpha, sigma = (float(level) for level in alpha_sigma(torch.tensor(t, dtype=torch.float64), schedule))
        gain = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)
        return MEAN + gain * (x - alpha * MEAN)

    return denoise


def flow(noise: Tensor, start: float, end: float, schedule: Schedule) -> Tensor:
    """Where the probability flow takes x from one time to another, in closed form: quantiles are kept."""
    (alpha, spread), (alpha_end, spread_end) = (
        (float(alpha), math.sqrt(float(alpha**2 * SPREAD**2 + sigma**2)))
        for alpha, sigma in (alpha_sigma(torch.tensor(t, dtype=torch.float64), schedule) for t in (start, end))
    )
    return alpha_end * MEAN + spread_end * (noise - alpha * MEAN) / spread


def draw(seed: int, *shape: int):
    rng = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(*shape, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_steps", [1, 2, 7])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp"])
def test_every_sampler_recovers_a_point_mass(sampler: str, num_steps: int, schedule: Schedule) -> None:
    point, noise = randn(2, 3, 4).double(), randn(2, 3, 4, seed=1).double()
    times = time_grid(num_steps)

    def denoise(x: Tensor, t: float) -> Tensor:
        return point

    if sampler == "ddpm":
        found = ddpm(denoise, noise, times, schedule, draw(2, 2, 3, 4))
    else:
        found = (ddim if sampler == "ddim" else dpmpp_2m)(denoise, noise, times, schedule)
    assert torch.allclose(found, point, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", [ddim, dpmpp_2m])
def test_more_steps_follow_the_flow_of_a_gaussian_more_closely(sampler, schedule: Schedule) -> None:
    noise = randn(1, 1, 1000).double()
    wanted = flow(noise, T_MAX, 0.0, schedule)

    def error(num_steps: int) -> float:
        found = sampler(gaussian_denoiser(schedule), noise, time_grid(num_steps), schedule)
        return float((found - wanted).square().mean().sqrt())

    assert error(5) > 2 * error(20) > 4 * error(500)
    assert error(500) < 0.01 * SPREAD


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("sampler", "order"), [(ddim, 1), (dpmpp_2m, 2)])
def test_error_of_a_sampler_falls_with_its_order(sampler, order: int, schedule: Schedule) -> None:
    noise, start, end = randn(1, 1, 1000).double(), 0.8, 0.2
    wanted = flow(noise, start, end, schedule)

    def error(num_steps: int) -> float:
        times = [start + (end - start) * i / num_steps for i in range(num_steps + 1)]
        found = sampler(gaussian_denoiser(schedule), noise, times, schedule)
        return float((found - wanted).square().mean().sqrt())

    assert error(80) / error(160) == pytest.approx(2**order, rel=0.15)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ancestral_sampling_has_the_mean_and_spread_of_the_target(schedule: Schedule) -> None:
    shape = (1, 1, 20_000)
    found = ddpm(gaussian_denoiser(schedule), draw(0, *shape)(), time_grid(200), schedule, draw(1, *shape))
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(found.std()) == pytest.approx(SPREAD, rel=0.05)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_large_ancestral_step_keeps_the_noise_level_of_its_time(schedule: Schedule) -> None:
    shape, start, end = (1, 1, 20_000), 0.7, 0.3
    levels = alpha_sigma(torch.tensor([start, end], dtype=torch.float64), schedule)
    (alpha, alpha_end), (sigma, sigma_end) = (level.tolist() for level in levels)
    noisy = alpha * MEAN + sigma * draw(0, *shape)()
    found = ddpm(lambda x, t: torch.full_like(x, MEAN), noisy, [start, end], schedule, draw(1, *shape))
    assert float(found.mean()) == pytest.approx(alpha_end * MEAN, abs=0.02)
    assert float(found.std()) == pytest.approx(sigma_end, rel=0.03)


@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_time_grid_falls_evenly_to_zero(num_steps: int) -> None:
    times = time_grid(num_steps)
    assert len(times) == num_steps + 1 and times[0] == T_MAX and times[-1] == 0.0
    steps = [now - then for now, then in itertools.pairwise(times)]
    assert steps == pytest.approx([T_MAX / num_steps] * num_steps)


def test_masked_loss_ignores_padding_even_when_it_is_not_a_number() -> None:
    predicted, wanted, mask = randn(2, 3, 4), randn(2, 3, 4, seed=1), randn(2, 3, 4, seed=2) > 0
    loss = masked_mse(predicted, wanted, mask)
    for value in (1e6, float("nan"), float("inf")):
        assert torch.equal(masked_mse(torch.where(mask, predicted, value), wanted, mask), loss)
    leaf = torch.where(mask, predicted, 7.0).requires_grad_()
    masked_mse(leaf, wanted, mask).backward()
    assert torch.equal(leaf.grad != 0, mask)


def test_masked_loss_is_a_mean_over_values_and_then_over_adapters() -> None:
    predicted = torch.stack([torch.full((4, 2), 1.0), torch.full((4, 2), 3.0)])
    mask = torch.ones(2, 4, 2, dtype=torch.bool)
    mask[1, 1:] = False  # the second adapter is four times as small and counts as much
    assert float(masked_mse(predicted, torch.zeros(2, 4, 2), mask)) == pytest.approx((1 + 9) / 2)
    assert float(masked_mse(predicted, predicted + 1, torch.zeros(2, 4, 2, dtype=torch.bool))) == 0.0


def test_training_times_cover_all_levels_and_lean_where_asked() -> None:
    def times(bias: float, num: int = 1000) -> Tensor:
        return sample_times(num, bias, torch.Generator().manual_seed(0))

    uniform = times(1.0).sort().values
    assert uniform[0] >= T_MIN and uniform[-1] <= T_MAX
    assert torch.allclose(uniform.diff(), torch.full((999,), (T_MAX - T_MIN) / 1000), atol=1e-5)
    assert float(times(4.0).mean()) == pytest.approx(0.8, abs=0.01)
    assert float(times(1.0).mean()) == pytest.approx(0.5, abs=0.01)
    assert float(times(0.5).mean()) == pytest.approx(1 / 3, abs=0.01)


def test_training_times_differ_between_draws_of_one_stream() -> None:
    rng = torch.Generator().manual_seed(0)
    assert not torch.equal(sample_times(4, 1.0, rng), sample_times(4, 1.0, rng))
