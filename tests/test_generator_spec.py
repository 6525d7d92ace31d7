"""The description of a stored generator: what version 0.1 wrote is read as what it says."""

from typing import Any

import pytest
from factory_fixtures import small_spec
from pydantic import ValidationError

from oral_ray.config import ConvDenoiserConfig, DiffusionObjective, GeneratorConfig, LatentConfig, MlpDenoiserConfig
from oral_ray.generator.spec import GeneratorSpec

FLAT = {
    "latent": None, "width": 8, "num_layers": 1, "recurrent": True, "state_dim": 4, "head_dim": 4, "chunk_size": 4,
    "denoiser": "mlp", "conv_channels": [3, 5], "denoiser_width": 6, "denoiser_blocks": 7, "kernel": "torch",
    "objective": {"kind": "diffusion", "prediction": "eps", "schedule": "linear"},
}  # fmt: skip
OBJECTIVE = DiffusionObjective(prediction="eps", schedule="linear")
SIZES = {"width": 8, "num_layers": 1, "state_dim": 4, "head_dim": 4, "chunk_size": 4, "kernel": "torch"}


def read(**changed: Any) -> GeneratorConfig | LatentConfig:
    stored = small_spec().model_dump(mode="json")
    return GeneratorSpec.model_validate(stored | {"generator": FLAT | changed}).generator


def test_flat_sizes_are_those_of_the_per_token_generator_with_its_denoiser():
    mlp, conv = MlpDenoiserConfig(width=6, num_blocks=7), ConvDenoiserConfig(channels=(3, 5))
    assert read() == GeneratorConfig(**SIZES, denoiser=mlp, objective=OBJECTIVE)
    assert read(denoiser="conv") == GeneratorConfig(**SIZES, denoiser=conv, objective=OBJECTIVE)


def test_flat_sizes_with_a_latent_are_those_of_the_latent_generator():
    assert read(latent={"patch": 4, "width": 16}) == LatentConfig(patch=4, width=16, objective=OBJECTIVE)


def test_a_flat_description_with_an_unknown_size_is_refused():
    with pytest.raises(ValidationError, match="girth"):
        read(girth=3)


def test_a_description_is_read_as_it_was_written():
    for config in (GeneratorConfig(denoiser=ConvDenoiserConfig()), LatentConfig()):
        spec = small_spec().model_copy(update={"generator": config})
        assert GeneratorSpec.model_validate(spec.model_dump(mode="json")) == spec
