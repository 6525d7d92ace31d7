"""Adapters of known models, sampled in pieces and written to disk: time, memory, growth, peers and the machine's limit.

The generator has the default sizes and random weights: speed and memory do not depend on what it has learnt. Peers are
timed on one layout each, a generated parameter at a time, with the sampling steps that each needs: RPG's convolutional
head with `rpg_steps`, the regression head with one. Floors are measured rates of this device for matrix products and
copies, and what the same work would take at those rates.

    oral-ray bench generate --json out/bench/generate.json
    oral-ray bench generate device=cuda --json docs/results/bench/generate-h100.json
"""

import tempfile
from pathlib import Path

import torch
from pydantic import PositiveFloat, PositiveInt

from oral_ray.adapters.layout import AdapterLayout
from oral_ray.adapters.tokens import POSITION_DIM, TokenStats
from oral_ray.bases.catalog import BaseRecord
from oral_ray.bases.families import ROLES
from oral_ray.bench.harness import BenchOptions, Result, Row, compare, fit_exponent, spread, timed, with_peak_memory
from oral_ray.bench.layouts import MODELS, RANKS, TARGETS, layout_of, spec_of
from oral_ray.config import (
    ConditionConfig,
    DiffusionObjective,
    GeneratorConfig,
    RegressionObjective,
    SamplingConfig,
)  # fmt: skip
from oral_ray.factory import PIECE_TOKENS, AdapterFactory
from oral_ray.generator.condition import Condition, ConditionEncoder, ProbeStats
from oral_ray.generator.model import Generator, build_network
from oral_ray.generator.network import Network
from oral_ray.generator.spec import GeneratorSpec

PROMPT = "Decide whether a review is positive or negative."
OUR_TOKENS, RPG_TOKENS = 512, 8  # enough for each to reach its rate


class Options(BenchOptions):
    """Which layouts, and how they are sampled; layouts of more than `max_parameters` are listed and not timed."""

    repetitions: PositiveInt = 1
    device: str = "cpu"
    models: tuple[str, ...] = MODELS
    targets: tuple[str, ...] = TARGETS
    ranks: tuple[PositiveInt, ...] = RANKS
    token_dim: PositiveInt = 1024
    num_steps: PositiveInt = 2
    rpg_steps: PositiveInt = 60
    max_parameters: PositiveFloat = 5e7


def run(options: Options) -> Result:
    """A row a layout; the exponent of time over parameters; peers; floors."""
    encoder = ConditionEncoder(ConditionConfig())
    factory = _factory(options, encoder)
    rows, timed_rows = [], []
    layouts = [(m, t, r) for m in options.models for t in options.targets for r in options.ranks]
    _generate(factory, *layouts[0], options)  # warm-up
    for model, targets, r in layouts:
        row = _generate(factory, model, targets, r, options)
        rows.append(row)
        timed_rows += [row] if row.get("seconds") else []
    exponents = []
    if len({row["parameters"] for row in timed_rows}) > 2:  # a line through two points says nothing
        size, seconds, memory = (
            [float(row[name] or 1) for row in timed_rows] for name in ("parameters", "seconds", "peak_mb")
        )
        exponents = [fit_exponent("seconds of parameters", size, seconds)]
        exponents.append(fit_exponent("peak memory of parameters", size, [max(value, 1.0) for value in memory]))
    peers = _peers(options, encoder)
    floors = _floors(options, factory, timed_rows[-1] if timed_rows else None)
    return Result(rows=tuple(rows), peers=tuple(peers), floors=tuple(floors), exponents=tuple(exponents))


def _spec(options: Options, encoder: ConditionEncoder, generator: GeneratorConfig) -> GeneratorSpec:
    return GeneratorSpec(
        generator=generator, condition=encoder.config, token_dim=options.token_dim, text_dim=encoder.text_dim,
        model_dim=encoder.model_dim, text_encoder_fingerprint=encoder.fingerprint, architectures=(), recipe="bench",
    )  # fmt: skip


def _factory(options: Options, encoder: ConditionEncoder) -> AdapterFactory:
    spec = _spec(options, encoder, GeneratorConfig())
    scales = {(role, factor): ((0.0, 0.02),) for role in ROLES for factor in ("A", "B")}
    generator = Generator(spec, build_network(spec, 0), TokenStats(scales, {}), ProbeStats({}, {}, {}))
    return AdapterFactory(generator, encoder, SamplingConfig(num_steps=options.num_steps), options.device)


def _generate(factory: AdapterFactory, model: str, targets: str, r: int, options: Options) -> Row:
    layout = layout_of(model, targets, r, options.token_dim)
    row: Row = {
        "what": f"{model} {targets} r={r}", "slots": len(layout.slots), "tokens": layout.num_tokens,
        "parameters": layout.num_parameters, "mb": layout.num_bytes / 1e6,
    }  # fmt: skip
    if layout.num_parameters > options.max_parameters:
        return row
    base = BaseRecord(id=model, uri="", fingerprint=layout.architecture, spec=spec_of(model))
    condition = Condition(PROMPT, base, {}, layout.lora)
    seconds, peaks = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.repetitions):
            took, peak = with_peak_memory(lambda: timed(lambda: factory.stream(condition, 0, Path(folder))))
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
        network = build_network(_spec(options, encoder, config), 0).to(options.device).eval()
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
        _wait(options.device)

    return call


def _floors(options: Options, factory: AdapterFactory, row: Row | None) -> list[Row]:
    """Rates of this device, and for one layout each part's work over its time at those rates."""
    device = options.device
    flops = {dtype: _matmul_flops(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    copy = _copy_bytes(device)
    rates: list[Row] = [
        {"what": f"matmul {str(dtype).removeprefix('torch.')}", "rate": rate / 1e9, "unit": "GFLOP/s"}
        for dtype, rate in flops.items()
    ]
    rates.append({"what": "copy", "rate": copy / 1e9, "unit": "GB/s"})
    if row is None:
        return rates
    model, targets, r = str(row["what"]).rsplit(" ", 2)
    layout = layout_of(model, targets, int(r.removeprefix("r=")), options.token_dim)
    return [*rates, *_parts(options, factory, layout, flops[torch.float32], copy)]


def _parts(options: Options, factory: AdapterFactory, layout: AdapterLayout, flops: float, copy: float) -> list[Row]:
    """Prototypes, denoising, noise, writing: measured on one piece (writing: on all) beside the ideal for it."""
    network = factory.generator.network
    assert isinstance(network, Network)
    device, num = options.device, min(PIECE_TOKENS, layout.num_tokens)
    position = torch.zeros(1, num, POSITION_DIM, device=device)
    yes = torch.ones(1, dtype=torch.bool, device=device)
    text, model = (
        torch.zeros(1, size, device=device) for size in (factory.encoder.text_dim, factory.encoder.model_dim)
    )
    noise, when = torch.randn(1, num, options.token_dim, device=device), torch.full((1,), 0.5, device=device)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        prototypes, _ = network.prototypes(position, text, model, yes, yes)
        calls = {
            "prototypes": lambda: network.prototypes(position, text, model, yes, yes),
            "denoising, one step": lambda: network.denoiser(noise, prototypes, when),
            "noise": lambda: torch.randn(num, options.token_dim, generator=rng),
            "detokenising": lambda: noise.reshape(-1, options.token_dim).mul(0.02).T.contiguous(),
            "writing": lambda: _write(noise),
        }
        seconds = {str(row["what"]): float(row["seconds"] or 0) for row in compare(
            {what: _waited(call, device) for what, call in calls.items()}, max(3, options.repetitions))}  # fmt: skip

    def linear(*modules: torch.nn.Module) -> int:
        return sum(p.numel() for module in modules for p in module.parameters() if p.dim() == 2)

    num_bytes = noise.numel() * 4
    ideal = {
        "prototypes": 2 * num * linear(network.position_in, network.layers) / flops,
        "denoising, one step": 2 * num * linear(network.denoiser) / flops,
        "noise": num_bytes / copy,
        "detokenising": 2 * num_bytes / copy,
        "writing": num_bytes / copy,
    }
    return [
        {"what": f"{what} of {num} tokens", "seconds": seconds[what], "ideal": ideal[what],
         "factor": seconds[what] / ideal[what]}
        for what in calls
    ]  # fmt: skip


def _write(noise: torch.Tensor) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(noise.cpu().numpy().data)


def _waited(call, device: str):
    def waited() -> None:
        call()
        _wait(device)

    return waited


def _matmul_flops(device: str, dtype: torch.dtype, size: int = 1024) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    [row] = compare({"matmul": _waited(lambda: a @ b, device)}, 7)
    return 2 * size**3 / float(row["lowest"] or 1)


def _copy_bytes(device: str, num_bytes: int = 1 << 28) -> float:
    source, target = (torch.zeros(num_bytes // 4, device=device) for _ in range(2))
    [row] = compare({"copy": _waited(lambda: target.copy_(source), device)}, 5)
    return num_bytes / float(row["lowest"] or 1)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
