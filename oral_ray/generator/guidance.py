"""Guidance (Ho & Salimans, arXiv 2207.12598) on each half of the condition, for any network and any sampler:

x0 = x0(-,-) + s_model (x0(-,m) - x0(-,-)) + s_text (x0(t,m) - x0(-,m)),

where t is the text, m the base model, and - the learnt null. Written out by network call, the weights are s_text for
(t,m), s_model - s_text for (-,m), 1 - s_model for (-,-).

    branches = [(weight, network_for(use_text, use_model)) for weight, use_text, use_model in guidance_terms(sampling, x)]
    x0 = diffusion.sample(guided(branches, objective), draw_noise, sampling.sampler, sampling.num_steps, schedule)

Letters: B adapters. A `Branch` maps (x_t, time [B]) to the raw output of the network for one way to fill the condition.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from oral_ray.config import DiffusionObjective, SamplingConfig
from oral_ray.generator import diffusion

Branch = Callable[[Tensor, Tensor], Tensor]


def guidance_terms(sampling: SamplingConfig, like_B: Tensor) -> list[tuple[float, Tensor, Tensor]]:
    """(weight, use text [B], use model [B]) of the network calls of one guided step; those of weight 0 are left out."""
    yes = torch.ones(len(like_B), dtype=torch.bool, device=like_B.device)
    s_text, s_model = sampling.guidance_text, sampling.guidance_model
    terms = [(s_text, yes, yes), (s_model - s_text, ~yes, yes), (1 - s_model, ~yes, ~yes)]
    return [term for term in terms if term[0] != 0.0]


def guided(branches: Sequence[tuple[float, Branch]], objective: DiffusionObjective) -> diffusion.Denoise:
    """The guided estimate of x_0: the estimate of every branch, times its weight, summed."""

    def denoise(x: Tensor, t: float) -> Tensor:
        time_B = torch.full((len(x),), t, device=x.device)
        estimates = []
        for weight, branch in branches:
            raw = branch(x, time_B)
            estimates.append((weight, diffusion.to_x0(raw, x, t, objective.schedule, objective.prediction)))
        return sum_weighted(estimates)

    return denoise


def sum_weighted(terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    """Sum of weight * tensor; a single term of weight 1 is returned as it is."""
    if len(terms) == 1 and terms[0][0] == 1.0:
        return terms[0][1]
    return torch.stack([weight * term for weight, term in terms]).sum(0)
