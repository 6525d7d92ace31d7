"""Chunked SSD against the plain recurrence, forward and backward, L = 1024."""

from collections.abc import Callable

import torch

from oral_ray.bench.harness import BenchOptions, Result, compare
from oral_ray.generator.ssm import ssd


class Options(BenchOptions):
    """The common ones."""


def run(options: Options) -> Result:
    """Rows by chunk length; the one in use first."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1024, 4, 64, generator=rng, requires_grad=True)
    dt = torch.rand(2, 1024, 4, generator=rng) * 0.1
    b, c = (torch.randn(2, 1024, 64, generator=rng) for _ in range(2))
    a = -torch.arange(1.0, 5.0)

    def chunked(chunk_size: int) -> Callable[[], object]:
        return lambda: ssd(x, dt, a, b, c, chunk_size, None)[0].sum().backward()

    candidates = {f"ssd, chunks of {size}": chunked(size) for size in (64, 128, 16)}
    return Result(rows=compare(candidates | {"ssd, step by step": chunked(1)}, options.repetitions))
