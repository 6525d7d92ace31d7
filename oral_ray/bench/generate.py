"""Adapters of known models, sampled in pieces and written to disk: time, memory, growth, peers and the machine's limit.

The generator has the default sizes and random weights: speed and memory do not depend on what it has learnt. Peers are
timed on one layout each, a generated parameter at a time, with the sampling steps that each needs: RPG's convolutional
head with `rpg_steps`, the regression head with one. Floors are measured rates of this device for matrix products and
copies, and what the same work would take at those rates.

    oral-ray bench generate --json out/bench/generate.json
    oral-ray bench generate device=cuda --json docs/results/h100/generate.json
"""

import itertools
import tempfile
from pathlib import Path

import torch
from pydantic import Field, PositiveFloat, PositiveInt

from oral_ray.adapters.layout import AdapterLayout
from oral_ray.adapters.tokens import POSITION_DIM, TokenStats
from oral_ray.bases.catalog import BaseRecord
from oral_ray.bases.roles import ROLES
from oral_ray.bench.floors import measure_floors, waited
from oral_ray.bench.harness import BenchOptions, Result, Row, compare, fit_exponent, spread, timed, with_peak_memory
from oral_ray.bench.layouts import MODELS, RANKS, TARGETS, layout_of, spec_of
from oral_ray.config import (
    ConditionConfig,
    DiffusionObjective,
    GeneratorConfig,
    RegressionObjective,
    SamplingConfig,
)  # fmt: skip
from oral_ray.errors import ConfigError, GeneratorError, LayoutError
from oral_ray.generation.condition import Condition
from oral_ray.generation.factory import AdapterFactory
from oral_ray.generator.condition import ConditionEncoder, ProbeStats
from oral_ray.generator.model import Generator, build_network
from oral_ray.generator.network import Network
from oral_ray.generator.spec import GeneratorSpec

PROMPT = "Decide whether a review is positive or negative."
OUR_TOKENS, RPG_TOKENS = 512, 8  # enough for each to reach its rate
MAX_GENERATOR = 100_000_000
Named = tuple[str, str, int]
"""A layout by its model, targets and rank."""
WARM_UP: Named = ("bert-base", "q,v", 4)


class Options(BenchOptions):
    """Which layouts, and how they are sampled; layouts of more than `max_parameters` are listed and not timed."""

    repetitions: PositiveInt = 1
    device: str = "cpu"
    models: tuple[str, ...] = Field(MODELS, min_length=1)
    targets: tuple[str, ...] = Field(TARGETS, min_length=1)
    ranks: tuple[PositiveInt, ...] = Field(RANKS, min_length=1)
    token_dim: int = Field(1024, ge=32, le=16384, multiple_of=32)  # RPG's recurrence is as wide, in heads of 64
    num_steps: PositiveInt = 2
    rpg_steps: PositiveInt = 60
    max_parameters: PositiveFloat = 5e7


def run(options: Options) -> Result:
    """A row a layout; the exponent of time over parameters; peers; floors."""
    layouts = _layouts(options)
    _check_device(options.device)
    encoder = ConditionEncoder(ConditionConfig())
    sampling = SamplingConfig(num_steps=options.num_steps)
    factory = random_factory(GeneratorConfig(), encoder, options.token_dim, sampling, options.device)
    size = sum(parameter.numel() for parameter in factory.generator.network.parameters())
    if size > MAX_GENERATOR:
        raise GeneratorError(f"a generator of {size:,} parameters is above {MAX_GENERATOR:,}; lower token_dim")
    rows, timed_rows = [], []
    _generate(factory, WARM_UP, layout_of(*WARM_UP, options.token_dim), options)
    for named, layout in layouts.items():
        row = _generate(factory, named, layout, options) | {"generator_parameters": size}
        rows.append(row)
        timed_rows += [row] if row.get("seconds") else []
    exponents = []
    if len({row["parameters"] for row in timed_rows}) > 2:  # a line through two points says nothing
        sizes, seconds, memory = (
            [float(row[name] or 1) for row in timed_rows] for name in ("parameters", "seconds", "peak_mb")
        )
        exponents = [fit_exponent("seconds of parameters", sizes, seconds)]
        exponents.append(fit_exponent("peak memory of parameters", sizes, [max(value, 1.0) for value in memory]))
    peers = _peers(options, encoder)
    floors = measure_floors(factory.generator.network, options.token_dim, options.device, max(3, options.repetitions))
    return Result(rows=tuple(rows), peers=tuple(peers), floors=tuple(floors), exponents=tuple(exponents))


def random_factory(
    config: GeneratorConfig, encoder: ConditionEncoder, token_dim: int, sampling: SamplingConfig, device: str
) -> AdapterFactory:
    """A factory with random weights: what it makes is worthless, how fast it makes it is not."""
    spec = _spec(config, encoder, token_dim)
    scales = {(role, factor): ((0.0, 0.02),) for role in ROLES for factor in ("A", "B")}
    generator = Generator(spec, build_network(spec, 0), TokenStats(scales, {}), ProbeStats({}, {}, {}))
    return AdapterFactory(generator, encoder, sampling, lambda base: {}, device)


def _spec(config: GeneratorConfig, encoder: ConditionEncoder, token_dim: int) -> GeneratorSpec:
    return GeneratorSpec(
        generator=config, condition=encoder.config, token_dim=token_dim, text_dim=encoder.text_dim,
        model_dim=encoder.model_dim, text_encoder_fingerprint=encoder.fingerprint, architectures=(), recipe="bench",
    )  # fmt: skip


def _layouts(options: Options) -> dict[Named, AdapterLayout]:
    """All of them before anything is timed; ConfigError or LayoutError names the one that cannot be."""
    found = {}
    for model, targets, r in itertools.product(options.models, options.targets, options.ranks):
        try:
            found[model, targets, r] = layout_of(model, targets, r, options.token_dim)
        except LayoutError as error:
            raise LayoutError(f"{model} {targets} r={r}: {error}") from None
    return found


def _check_device(device: str) -> None:
    """ConfigError when torch has no such device here."""
    try:
        torch.zeros(1, device=device)
    except (AssertionError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        raise ConfigError(f"no device {device!r} here ({why}); say device=cpu, or run where it is") from None


def _generate(factory: AdapterFactory, named: Named, layout: AdapterLayout, options: Options) -> Row:
    model, targets, r = named
    row: Row = {
        "what": f"{model} {targets} r={r}", "slots": len(layout.slots), "tokens": layout.num_tokens,
        "parameters": layout.num_parameters, "mb": layout.num_bytes / 1e6,
    }  # fmt: skip
    if layout.num_parameters > options.max_parameters:
        return row
    base = BaseRecord(id=model, uri="", fingerprint=layout.architecture, spec=spec_of(model))
    condition = Condition(PROMPT, base, layout.lora)
    seconds, peaks = [], []
    with tempfile.TemporaryDirectory() as folder:

        def generate() -> None:
            [adapter] = factory.generate([condition])
            adapter.write(Path(folder))

        for _ in range(options.repetitions):
            took, peak = with_peak_memory(lambda: timed(generate))
            seconds.append(took)
            peaks.append(peak)
    return row | spread(seconds) | {
        "peak_mb": max(peaks) / 1e6, "ns_per_parameter": min(seconds) / layout.num_parameters * 1e9
    }  # fmt: skip


def _peers(options: Options, encoder: ConditionEncoder) -> list[Row]:
    """Tokens of one piece through each head; seconds of all its sampling steps."""
    heads: dict[str, tuple[GeneratorConfig, int, int]] = {
        "ours": (GeneratorConfig(), options.num_steps, OUR_TOKENS),
        "regression head, one pass": (GeneratorConfig(objective=RegressionObjective()), 1, OUR_TOKENS),
        "RPG's head at our number of steps": (_rpg(options), options.num_steps, RPG_TOKENS),
        "RPG's head": (_rpg(options), options.rpg_steps, RPG_TOKENS),
    }
    calls, parameters = {}, {}
    for what, (config, num_steps, num_tokens) in heads.items():
        network = build_network(_spec(config, encoder, options.token_dim), 0).to(options.device).eval()
        parameters[what] = sum(parameter.numel() for parameter in network.parameters())
        calls[what] = _sampling(network, num_tokens, num_steps, options, encoder)
    rows = compare(calls, max(3, options.repetitions))
    found: list[Row] = []
    for row in rows:
        what = str(row["what"])
        _, num_steps, num_tokens = heads[what]
        ns = float(row["seconds"] or 0) / (num_tokens * options.token_dim) * 1e9
        found.append(row | {"ns_per_parameter": ns, "steps": num_steps, "generator_parameters": parameters[what]})
    return found


def _rpg(options: Options) -> GeneratorConfig:
    """RPG ties the width of the recurrence to the size of a token."""
    return GeneratorConfig(width=options.token_dim, denoiser="conv", objective=DiffusionObjective())


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
