"""A generator: a network with the statistics it was trained under, and its checkpoint on disk.

A checkpoint is a folder of `generator.safetensors` (weights and statistics) and `generator.json` (everything that is no
tensor); loading is strict.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from oral_ray.adapters.tokens import TokenStats
from oral_ray.config import LatentConfig, derive_seed
from oral_ray.errors import GeneratorError
from oral_ray.generator.condition import ProbeStats
from oral_ray.generator.latent import LatentNetwork
from oral_ray.generator.network import Network
from oral_ray.generator.spec import GeneratorSpec

WEIGHTS, DESCRIPTION = "generator.safetensors", "generator.json"
MEAN = "mean."
AnyNetwork = Network | LatentNetwork


@dataclass(frozen=True, slots=True)
class Generator:
    """A network with the statistics it was trained under; what `AdapterFactory` samples from."""

    spec: GeneratorSpec
    network: AnyNetwork
    token_stats: TokenStats
    probe_stats: ProbeStats


def build_network(spec: GeneratorSpec, seed: int) -> AnyNetwork:
    """A freshly initialised network; the initialisation depends on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "generator-init"))
        return LatentNetwork(spec) if isinstance(spec.generator, LatentConfig) else Network(spec)


def save_generator(generator: Generator, folder: Path) -> None:
    """Write a checkpoint folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"network.{name}": t.detach().cpu().contiguous() for name, t in generator.network.state_dict().items()}
    tensors |= {f"{MEAN}{digest}": mean for digest, mean in generator.token_stats.means.items()}
    for part in ("mean", "axes", "spread"):
        tensors |= {f"probe.{part}.{arch}": t for arch, t in getattr(generator.probe_stats, part).items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    scales = [[role, factor, list(map(list, rows))] for (role, factor), rows in generator.token_stats.scales.items()]
    description = {"spec": generator.spec.model_dump(mode="json"), "scales": scales}
    (folder / DESCRIPTION).write_text(json.dumps(description, sort_keys=True, indent=1), encoding="utf-8")


def load_generator(folder: Path) -> Generator:
    """Read a checkpoint folder; GeneratorError for anything missing, extra or of another shape."""
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        spec = GeneratorSpec.model_validate(description["spec"])
        tensors = load_file(folder / WEIGHTS)
        scales = {
            (role, factor): tuple((float(depth), float(scale)) for depth, scale in rows)
            for role, factor, rows in description["scales"]
        }
    except FileNotFoundError as error:
        raise GeneratorError(f"no generator at {folder}: {Path(error.filename or WEIGHTS).name} is missing") from None
    except (ValueError, KeyError, TypeError, SafetensorError, ValidationError) as error:
        raise GeneratorError(f"generator at {folder} is damaged: {' '.join(str(error).split())[:300]}") from None

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

    network = build_network(spec, seed=0)
    try:
        network.load_state_dict(part("network."), strict=True)
    except RuntimeError as error:
        raise GeneratorError(f"generator at {folder} does not fit its own description: {error}") from None
    stats = ProbeStats(part("probe.mean."), part("probe.axes."), part("probe.spread."))
    odd = [name for name in tensors if not name.startswith(("network.", MEAN, "probe."))]
    odd += sorted((stats.mean.keys() ^ stats.axes.keys()) | (stats.mean.keys() ^ stats.spread.keys()))
    if odd:
        raise GeneratorError(f"generator at {folder} does not fit its own description: {odd[0]!r} is lost or unknown")
    return Generator(spec, network.eval(), TokenStats(scales, part(MEAN)), stats)
