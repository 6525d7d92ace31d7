"""Guidance as one function over any network: what it sums, with which weights."""

import pytest
import torch
from factory_fixtures import randn

from oral_ray.config import DiffusionObjective, SamplingConfig
from oral_ray.generator import diffusion
from oral_ray.generator.guidance import guidance_terms, guided


@pytest.mark.parametrize("prediction", ["v", "eps", "x0"])
def test_a_guided_estimate_is_the_formula_over_the_estimates_of_the_three_conditions(prediction: diffusion.Prediction):
    x, t = randn(2, 5, 3), 0.4
    sampling = SamplingConfig(guidance_text=3.0, guidance_model=2.0)
    both, model_only, neither = (randn(2, 5, 3, seed=seed) for seed in (1, 2, 3))
    raw = {(True, True): both, (False, True): model_only, (False, False): neither}

    def branch(use_text: bool, use_model: bool):
        def network(x_t: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            assert x_t is x and torch.equal(time, torch.full((2,), t))
            return raw[use_text, use_model]

        return network

    terms = guidance_terms(sampling, x)
    branches = [(weight, branch(bool(text[0]), bool(model[0]))) for weight, text, model in terms]
    objective = DiffusionObjective(prediction=prediction)
    e_both, e_model, e_neither = (
        diffusion.to_x0(values, x, t, objective.schedule, prediction) for values in (both, model_only, neither)
    )
    wanted = e_neither + 2.0 * (e_model - e_neither) + 3.0 * (e_both - e_model)
    torch.testing.assert_close(guided(branches, objective)(x, t), wanted, atol=1e-5, rtol=1e-5)


def test_without_guidance_the_one_estimate_is_returned_as_it_is():
    x, values = randn(1, 2, 3), randn(1, 2, 3, seed=1)
    objective = DiffusionObjective(prediction="x0")
    [(weight, _, _)] = guidance_terms(SamplingConfig(), x)
    assert guided([(weight, lambda x_t, time: values)], objective)(x, 0.5) is values
