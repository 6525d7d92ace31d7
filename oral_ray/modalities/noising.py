"""What a scheduler of diffusers trains its denoiser for: how images are noised, and what is to be told of the noise.

At a point u of the schedule (0: hardly any noise, 1: all noise) a noisy image is `signal * x0 + noise * e`. The target is
e (epsilon; Ho et al., arXiv 2006.11239), `signal * e - noise * x0` (v; Salimans & Ho, arXiv 2202.00512), x0 (sample), or
`e - x0` (flow matching; Lipman et al., arXiv 2210.02747). Everything follows from the scheduler's own configuration, so
those that differ only in how they sample (DDIM, PNDM, Euler, DPM-Solver) train alike.

    noised = schedule_of(scheduler).at(torch.rand(8, generator=rng))
    noised.image(x0, e), noised.target(x0, e), noised.times_B

Letters: B examples, C channels, H, W latent height and width; all factors are [B, 1, 1, 1].
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oral_ray.errors import BaseModelError

_TARGETS = ("epsilon", "v_prediction", "sample", "flow_prediction")


@dataclass(frozen=True, slots=True)
class Noised:
    """Points of a schedule, one per example: the times as the denoiser reads them, and the factors of image and noise."""

    times_B: Tensor
    signal: Tensor
    noise: Tensor
    target_signal: Tensor
    target_noise: Tensor

    def image(self, x0_BCHW: Tensor, noise_BCHW: Tensor) -> Tensor:
        """The noisy latents [B, C, H, W]."""
        return self.signal * x0_BCHW + self.noise * noise_BCHW

    def target(self, x0_BCHW: Tensor, noise_BCHW: Tensor) -> Tensor:
        """What the denoiser should answer [B, C, H, W]."""
        return self.target_signal * x0_BCHW + self.target_noise * noise_BCHW


@dataclass(frozen=True, slots=True)
class Schedule:
    """The noise of a scheduler: `alphas_T` (the squared signal at each step; none for flows) and the kind of target."""

    target: str
    num_steps: int
    alphas_T: Tensor | None
    shift: float

    def at(self, u_B: Tensor) -> Noised:
        """The points u in [0, 1) of the schedule."""
        if self.alphas_T is None:
            sigma_B = self.shift * u_B / (1 + (self.shift - 1) * u_B)
            times_B, signal_B, noise_B = sigma_B * self.num_steps, 1 - sigma_B, sigma_B
        else:
            times_B = (u_B * self.num_steps).long().clamp(0, self.num_steps - 1)
            alpha_B = self.alphas_T.to(u_B.device)[times_B]
            signal_B, noise_B = alpha_B.sqrt(), (1 - alpha_B).sqrt()
        zero_B, one_B = torch.zeros_like(signal_B), torch.ones_like(signal_B)
        wanted = {
            "epsilon": (zero_B, one_B),
            "v_prediction": (-noise_B, signal_B),
            "sample": (one_B, zero_B),
            "flow_prediction": (-one_B, one_B),
        }[self.target]
        factors = (factor_B[:, None, None, None] for factor_B in (signal_B, noise_B, *wanted))
        return Noised(times_B, *factors)


def schedule_of(scheduler: Any) -> Schedule:
    """The schedule of a scheduler of diffusers; BaseModelError where its training target is not known here."""
    config, name = scheduler.config, type(scheduler).__name__
    alphas_T = getattr(scheduler, "alphas_cumprod", None)
    target = config.get("prediction_type")
    if target is None and "FlowMatch" in name:
        target = "flow_prediction"
    if target not in _TARGETS or (alphas_T is None and target != "flow_prediction"):
        raise BaseModelError(
            f"its scheduler, a {name} with prediction_type {target!r}, has no training target that is known here; known "
            f"are {', '.join(_TARGETS)}"
        )
    is_flow = target == "flow_prediction"
    shift = 1.0 if config.get("use_dynamic_shifting") else config.get("shift") or config.get("flow_shift") or 1.0
    alphas_T = None if is_flow else torch.as_tensor(alphas_T).float()
    return Schedule(target, int(config["num_train_timesteps"]), alphas_T, float(shift))
