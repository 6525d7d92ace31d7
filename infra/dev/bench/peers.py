"""Our head beside the regression head and RPG's, all untrained, and beside the machine's limit: time of a parameter.

Each head makes tokens with the sampling steps that it needs: RPG's convolutional head `rpg_steps`, the regression head
one. Floors are measured rates of this device for matrix products and copies, and what the work on one piece of an
adapter would take at those rates.

    python infra/dev/bench peers --json out/bench/peers.json
    python infra/dev/bench peers device=cuda
"""

import torch
from dev.bench.floors import measure_floors, waited
from pydantic import Field, PositiveInt

from oral_ray.adapters.tokens import POSITION_DIM
from oral_ray.bench.generate import check_device, generator_spec
from oral_ray.bench.harness import BenchOptions, Result, Row, compare
from oral_ray.config import (
    ConditionConfig,
    ConvDenoiserConfig,
    DiffusionObjective,
    GeneratorConfig,
    RegressionObjective,
    SamplingConfig,
)
from oral_ray.generator.condition import ConditionEncoder
from oral_ray.generator.model import build_network
from oral_ray.generator.network import Network

OUR_TOKENS, RPG_TOKENS = 512, 8  # enough for each to reach its rate


class Options(BenchOptions):
    """How the heads sample; all make tokens of `token_dim` values."""

    repetitions: PositiveInt = 3
    device: str = "cpu"
    token_dim: int = Field(1024, ge=32, le=16384, multiple_of=32)  # RPG's recurrence is as wide, in heads of 64
    num_steps: PositiveInt = 2
    rpg_steps: PositiveInt = 60


def run(options: Options) -> Result:
    """A row per head, its ratio to ours; floors of ours."""
    check_device(options.device)
    encoder = ConditionEncoder(ConditionConfig())
    network = build_network(generator_spec(GeneratorConfig(), encoder, options.token_dim), 0).to(options.device).eval()
    rows = _rows(options, encoder)
    floors = measure_floors(network, options.token_dim, options.device, options.repetitions)
    return Result(rows=tuple(rows), floors=tuple(floors))


def _rows(options: Options, encoder: ConditionEncoder) -> list[Row]:
    """Tokens of one piece through each head; seconds of all its sampling steps."""
    heads: dict[str, tuple[GeneratorConfig, int, int]] = {
        "ours": (GeneratorConfig(), options.num_steps, OUR_TOKENS),
        "regression head, one pass": (GeneratorConfig(objective=RegressionObjective()), 1, OUR_TOKENS),
        "RPG's head at our number of steps": (_rpg(options), options.num_steps, RPG_TOKENS),
        "RPG's head": (_rpg(options), options.rpg_steps, RPG_TOKENS),
    }
    calls, parameters = {}, {}
    for what, (config, num_steps, num_tokens) in heads.items():
        network = build_network(generator_spec(config, encoder, options.token_dim), 0).to(options.device).eval()
        parameters[what] = sum(parameter.numel() for parameter in network.parameters())
        calls[what] = _sampling(network, num_tokens, num_steps, options, encoder)
    rows = compare(calls, options.repetitions)
    found: list[Row] = []
    for row in rows:
        what = str(row["what"])
        _, num_steps, num_tokens = heads[what]
        ns = float(row["seconds"] or 0) / (num_tokens * options.token_dim) * 1e9
        found.append(row | {"ns_per_parameter": ns, "steps": num_steps, "generator_parameters": parameters[what]})
    return found


def _rpg(options: Options) -> GeneratorConfig:
    """RPG ties the width of the recurrence to the size of a token."""
    return GeneratorConfig(width=options.token_dim, denoiser=ConvDenoiserConfig(), objective=DiffusionObjective())


def _sampling(network: object, num_tokens: int, num_steps: int, options: Options, encoder: ConditionEncoder):
    assert isinstance(network, Network)
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(1, num_tokens, options.token_dim, generator=rng).to(options.device)
    position = torch.zeros(1, num_tokens, POSITION_DIM, device=options.device)
    text = torch.zeros(1, encoder.text_dim, device=options.device)
    model = torch.zeros(1, encoder.model_dim, device=options.device)
    sampling = SamplingConfig(num_steps=num_steps)

    def call() -> None:
        network.sample(position, torch.ones_like(noise, dtype=torch.bool), text, model, lambda: noise, sampling)

    return waited(call, options.device)
