"""How far a piece of an adapter is from the machine's limit: measured rates, each part's work at them, and where time goes.

Ideals count what no implementation can leave out: multiply-adds of the weights and of the recurrence at the rate of a
large matrix product, values read and written at the rate of a copy. A part that takes more than `EXPLAINED` times its
ideal gets a row for each operator that takes a tenth of it (`torch.profiler`).
"""

import tempfile
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from oral_ray.adapters.tokens import POSITION_DIM
from oral_ray.bench.harness import Row, compare
from oral_ray.errors import GeneratorError
from oral_ray.generation.factory import PIECE_TOKENS
from oral_ray.generator.denoiser import Denoiser
from oral_ray.generator.network import Network
from oral_ray.generator.pieces import NoiseStream
from oral_ray.generator.ssm import CONV_WIDTH, Mamba2

EXPLAINED, SHOWN = 2.0, 0.1


def measure_floors(network: object, token_dim: int, device: str, repetitions: int) -> list[Row]:
    """Rates of a device; a row a part of one piece, and rows for the operators of those far from their ideal."""
    if not isinstance(network, Network) or not isinstance(network.denoiser, Denoiser):
        raise GeneratorError("floors are those of the per-token generator with the mlp denoiser")
    flops = {dtype: _matmul_flops(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    copy = _copy_bytes(device)
    rows: list[Row] = [
        {"what": f"matmul {str(dtype).removeprefix('torch.')}", "rate": rate / 1e9, "unit": "GFLOP/s"}
        for dtype, rate in flops.items()
    ]
    rows.append({"what": "copy", "rate": copy / 1e9, "unit": "GB/s"})
    calls, ideal = _parts(network, token_dim, device), _ideals(network, token_dim, flops[torch.float32], copy)
    with torch.no_grad():
        for row in compare({what: waited(call, device) for what, call in calls.items()}, repetitions):
            what, seconds = str(row["what"]), float(row["seconds"] or 0)
            factor = seconds / ideal[what]
            rows.append({"what": what, "seconds": seconds, "ideal": ideal[what], "factor": factor})
            if factor > EXPLAINED:
                rows += _operators(what, calls[what])
    return rows


def waited(call: Callable[[], object], device: str) -> Callable[[], None]:
    """The call, over when the device is done with it."""

    def done() -> None:
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    return done


def _parts(network: Network, token_dim: int, device: str) -> dict[str, Callable[[], object]]:
    """Everything that is done with one piece."""
    num = PIECE_TOKENS
    position = torch.zeros(1, num, POSITION_DIM, device=device)
    yes = torch.ones(1, dtype=torch.bool, device=device)
    text, model = (
        torch.zeros(1, next(layer.parameters()).shape[1], device=device)
        for layer in (network.text_in, network.model_in)
    )
    noise, when = torch.randn(1, num, token_dim, device=device), torch.full((1,), 0.5, device=device)
    with torch.no_grad():
        prototypes, _ = network.prototypes(position, text, model, yes, yes)
    rng = torch.Generator().manual_seed(0)
    return {
        "prototypes": lambda: network.prototypes(position, text, model, yes, yes),
        "denoising, one step": lambda: network.denoiser(noise, prototypes, when),
        "noise": lambda: NoiseStream(rng, num, token_dim).take(num),
        "detokenising": lambda: noise.reshape(-1, token_dim).mul(0.02).T.contiguous(),
        "writing": lambda: _write(noise),
    }


def _ideals(network: Network, token_dim: int, flops: float, copy: float) -> dict[str, float]:
    """Seconds of each part at the rates of the device."""
    assert isinstance(network.denoiser, Denoiser)
    per_token = linear(network.position_in, network.layers)
    for mixer in network.layers.modules():
        if isinstance(mixer, Mamba2):  # decay, add and read a state [inner, state_dim], and the short convolution
            per_token += 3 * mixer.inner * mixer.state_dim + CONV_WIDTH * (mixer.inner + 2 * mixer.state_dim)
    per_step = linear(network.denoiser) - linear(network.denoiser.time_in)  # the time is embedded once
    num_bytes = 4 * PIECE_TOKENS * token_dim
    return {
        "prototypes": 2 * PIECE_TOKENS * per_token / flops,
        "denoising, one step": 2 * PIECE_TOKENS * per_step / flops,
        "noise": num_bytes / 2 / copy,  # written, not read
        "detokenising": num_bytes / copy,
        "writing": num_bytes / copy,
    }


def linear(*modules: torch.nn.Module) -> int:
    """Weights that every token is multiplied with."""
    return sum(p.numel() for module in modules for p in module.parameters() if p.dim() == 2)


def _operators(what: str, call: Callable[[], object], runs: int = 3) -> list[Row]:
    """The share and the time of one run of every operator that takes at least `SHOWN` of a part."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(runs):
            call()
    found = {event.key: event.self_cpu_time_total / 1e6 / runs for event in profiled.key_averages()}
    total = sum(found.values())
    return [
        {"what": f"  {what}: {name}", "seconds": seconds, "share": seconds / total}
        for name, seconds in sorted(found.items(), key=lambda item: -item[1])
        if seconds / total >= SHOWN
    ]


def _write(noise: torch.Tensor) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(noise.cpu().numpy().data)


def _matmul_flops(device: str, dtype: torch.dtype, size: int = 1024) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    [row] = compare({"matmul": waited(lambda: a @ b, device)}, 7)
    return 2 * size**3 / float(row["lowest"] or 1)


def _copy_bytes(device: str, num_bytes: int = 1 << 28) -> float:
    """Bytes copied a second; each is read once and written once."""
    source, target = (torch.zeros(num_bytes // 4, device=device) for _ in range(2))
    [row] = compare({"copy": waited(lambda: target.copy_(source), device)}, 5)
    return num_bytes / float(row["lowest"] or 1)
