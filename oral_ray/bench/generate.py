"""Adapters of known models, sampled in pieces and written to disk: time, memory, and how both grow with the size.

The generator has the default sizes and random weights: speed and memory do not depend on what it has learnt.

    oral-ray bench generate --json out/bench/generate.json
    oral-ray bench generate 'models=["/models/mine"]' ranks=[16]
    oral-ray bench generate device=cuda --json docs/results/h100/generate.json
"""

import itertools
import tempfile
from pathlib import Path

import torch
from pydantic import Field, PositiveFloat, PositiveInt

from oral_ray.adapters.layout import AdapterLayout
from oral_ray.adapters.tokens import TokenStats
from oral_ray.bases.catalog import BaseRecord
from oral_ray.bases.roles import ROLES
from oral_ray.bench.harness import BenchOptions, Result, Row, fit_exponent, spread, timed, with_peak_memory
from oral_ray.bench.layouts import MODELS, RANKS, TARGETS, layout_of, spec_of
from oral_ray.config import ConditionConfig, GeneratorConfig, LatentConfig, SamplingConfig
from oral_ray.errors import ConfigError, GeneratorError, LayoutError
from oral_ray.generation.condition import Condition
from oral_ray.generation.factory import AdapterFactory
from oral_ray.generator.condition import ConditionEncoder, ProbeStats
from oral_ray.generator.model import Generator, build_network
from oral_ray.generator.spec import GeneratorSpec

PROMPT = "Decide whether a review is positive or negative."
MAX_GENERATOR = 100_000_000
Named = tuple[str, str, int]
"""A layout by its model, targets and rank."""
WARM_UP: Named = ("bert-base", "q,v", 4)


class Options(BenchOptions):
    """Which layouts, and how they are sampled; layouts of more than `max_parameters` are listed and not timed.

    `models` are names of known ones or sources of base models: a folder with a config.json, hf:ORG/NAME, ...
    """

    repetitions: PositiveInt = 1
    device: str = "cpu"
    models: tuple[str, ...] = Field(MODELS, min_length=1)
    targets: tuple[str, ...] = Field(TARGETS, min_length=1)
    ranks: tuple[PositiveInt, ...] = Field(RANKS, min_length=1)
    token_dim: int = Field(1024, ge=32, le=16384, multiple_of=32)
    num_steps: PositiveInt = 2
    max_parameters: PositiveFloat = 5e7


def run(options: Options) -> Result:
    """A row per layout; the exponents of time and memory over parameters."""
    layouts = _layouts(options)
    check_device(options.device)
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
    return Result(rows=tuple(rows), exponents=tuple(exponents))


def random_factory(
    config: GeneratorConfig | LatentConfig,
    encoder: ConditionEncoder,
    token_dim: int,
    sampling: SamplingConfig,
    device: str,
) -> AdapterFactory:
    """A factory with random weights: what it makes is worthless, how fast it makes it is not."""
    spec = generator_spec(config, encoder, token_dim)
    scales = {(role, factor): ((0.0, 0.02),) for role in ROLES for factor in ("A", "B")}
    generator = Generator(spec, build_network(spec, 0), TokenStats(scales, {}), ProbeStats({}, {}, {}))
    return AdapterFactory(generator, encoder, sampling, lambda base: {}, device)


def generator_spec(config: GeneratorConfig | LatentConfig, encoder: ConditionEncoder, token_dim: int) -> GeneratorSpec:
    """What a generator of these sizes is, whatever it has learnt."""
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


def check_device(device: str) -> None:
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
