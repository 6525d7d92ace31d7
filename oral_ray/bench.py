"""Benchmarks behind `oral-ray bench`: ratios within one run, so that a noisy machine does not decide.

Each benchmark returns rows {what, seconds, ratio}; `ratio` is to the first row, medians of interleaved repetitions.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping

import torch

from oral_ray.adapters.tokens import POSITION_DIM
from oral_ray.bases.loading import open_base
from oral_ray.config import ConditionConfig, GeneratorConfig, SamplingConfig
from oral_ray.errors import ConfigError
from oral_ray.generator.model import build_network
from oral_ray.generator.spec import GeneratorSpec
from oral_ray.generator.ssm import ssd
from oral_ray.tasks import load_task
from oral_ray.tasks.scoring import batches, build_head

Row = dict[str, str | float]


def run_benchmark(name: str, repetitions: int = 5) -> Iterator[Row]:
    """Run one benchmark by name, or all of them with `all`, a row as soon as it is known; ConfigError lists the names."""
    if name != "all" and name not in BENCHMARKS:
        raise ConfigError(f"unknown benchmark {name!r}; there are {', '.join(BENCHMARKS)} and all")
    chosen = BENCHMARKS if name == "all" else {name: BENCHMARKS[name]}
    for build in chosen.values():
        yield from _compare(build(), repetitions)


def _compare(candidates: Mapping[str, Callable[[], object]], repetitions: int) -> list[Row]:
    seconds: dict[str, list[float]] = {what: [] for what in candidates}
    for repetition in range(repetitions + 1):
        for what, call in candidates.items():
            started = time.perf_counter()
            call()
            if repetition:  # the first one warms up
                seconds[what].append(time.perf_counter() - started)
    medians = {what: statistics.median(values) for what, values in seconds.items()}
    first = next(iter(medians.values()))
    return [{"what": what, "seconds": value, "ratio": value / first} for what, value in medians.items()]


def ssd_forms() -> dict[str, Callable[[], object]]:
    """Chunked SSD against the plain recurrence, forward and backward, L = 1024."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1024, 4, 64, generator=rng, requires_grad=True)
    dt = torch.rand(2, 1024, 4, generator=rng) * 0.1
    b, c = (torch.randn(2, 1024, 64, generator=rng) for _ in range(2))
    a = -torch.arange(1.0, 5.0)

    def chunked(chunk_size: int) -> Callable[[], object]:
        return lambda: ssd(x, dt, a, b, c, chunk_size, None)[0].sum().backward()

    return {
        "ssd, chunks of 64": chunked(64),
        "ssd, chunks of 128": chunked(128),
        "ssd, chunks of 16": chunked(16),
        "ssd, step by step": chunked(1),
    }


def sampling_batches() -> dict[str, Callable[[], object]]:
    """16 adapters of 288 tokens, sampled together and one by one (what `determinism` does)."""
    config = GeneratorConfig()
    spec = GeneratorSpec(
        generator=config, condition=ConditionConfig(), token_dim=384, text_dim=384, model_dim=388,
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

    return {
        "sample 16 adapters, one batch": lambda: sample(16, SamplingConfig()),
        "sample 16 adapters, one by one": lambda: sample(1, SamplingConfig()),
        "sample 16 adapters, one batch, 20 steps": lambda: sample(16, SamplingConfig(num_steps=20)),
        "sample 16 adapters, one batch, guidance 2": lambda: sample(16, SamplingConfig(guidance_text=2.0)),
    }


def scoring_batches() -> dict[str, Callable[[], object]]:
    """250 definitions through MiniLM-L6 (extra `quickstart`), in batches of several sizes, texts sorted by length."""
    base, task = open_base(ConditionConfig().text_encoder), load_task("wordnet/matter")
    examples = task.examples("test")[:250]
    head = build_head(base.record.spec.kind, base.model, base.tokenizer, task.labels)

    def score(batch_size: int) -> Callable[[], object]:
        read = [batch for _, batch in batches(head, base.tokenizer, examples, batch_size)]
        return torch.inference_mode()(lambda: [head.logits(base.model, batch) for batch in read])

    return {f"score 250 texts, batches of {size}": score(size) for size in (16, 8, 32, 64)}


BENCHMARKS = {"ssd": ssd_forms, "sample": sampling_batches, "score": scoring_batches}
