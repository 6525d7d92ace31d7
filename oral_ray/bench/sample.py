"""16 adapters of 288 tokens, sampled together and one by one (what `determinism` does), with more steps, with guidance."""

import torch

from oral_ray.adapters.tokens import POSITION_DIM
from oral_ray.bench.harness import BenchOptions, Result, compare
from oral_ray.config import ConditionConfig, GeneratorConfig, SamplingConfig
from oral_ray.generator.model import build_network
from oral_ray.generator.spec import GeneratorSpec


class Options(BenchOptions):
    """The common ones."""


def run(options: Options) -> Result:
    """Rows by way of sampling; one batch of all first."""
    spec = GeneratorSpec(
        generator=GeneratorConfig(), condition=ConditionConfig(), token_dim=384, text_dim=384, model_dim=388,
        text_encoder_fingerprint="", architectures=(), recipe="",
    )  # fmt: skip
    network = build_network(spec, 0).eval()
    rng = torch.Generator().manual_seed(0)

    def sample(batch: int, sampling: SamplingConfig) -> None:
        for _ in range(16 // batch):
            network.sample(
                torch.zeros(batch, 288, POSITION_DIM), torch.ones(batch, 288, 384, dtype=torch.bool),
                torch.zeros(batch, 384), torch.zeros(batch, 388),
                lambda: torch.randn(batch, 288, 384, generator=rng), sampling,
            )  # fmt: skip

    candidates = {
        "sample 16 adapters, one batch": lambda: sample(16, SamplingConfig()),
        "sample 16 adapters, one by one": lambda: sample(1, SamplingConfig()),
        "sample 16 adapters, one batch, 20 steps": lambda: sample(16, SamplingConfig(num_steps=20)),
        "sample 16 adapters, one batch, guidance 2": lambda: sample(16, SamplingConfig(guidance_text=2.0)),
    }
    return Result(rows=compare(candidates, options.repetitions))
