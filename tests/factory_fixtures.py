"""What the tests of adapters, generator, factory and evaluation share: small layouts, random adapters, a toy task."""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from oral_ray.adapters.artifact import AdapterArtifact, Provenance, build_artifact
from oral_ray.adapters.gauge import Factors
from oral_ray.adapters.layout import AdapterLayout
from oral_ray.adapters.tokens import TokenMoments, TokenStats, tokenize
from oral_ray.bases.loading import LoadedBase, open_base
from oral_ray.config import (
    ConditionConfig,
    DiffusionObjective,
    GeneratorConfig,
    LoraSettings,
    MlpDenoiserConfig,
    RegressionObjective,
)
from oral_ray.generator.model import build_network
from oral_ray.generator.network import Network
from oral_ray.generator.spec import GeneratorSpec
from oral_ray.tasks import Example, Task

ALL_ROLES = ("q", "k", "v", "o", "up", "down")


@cache
def base_of(folder: Path) -> LoadedBase:
    """A base in memory, loaded once; a test must leave it as it was."""
    return open_base(str(folder))


def layout_of(folder: Path, r: int = 2, targets: tuple[str, ...] = ("q", "v"), token_dim: int = 24) -> AdapterLayout:
    return AdapterLayout.of(base_of(folder).record.spec, LoraSettings(r=r, target_modules=targets), token_dim)


def random_factors(layout: AdapterLayout, seed: int, scale: float = 0.3) -> Factors:
    rng = torch.Generator().manual_seed(seed)
    tensors = {slot.key: torch.randn(slot.shape(layout.lora.r), generator=rng) * scale for slot in layout.slots}
    return {
        slot.module: (tensors[slot.key], tensors[slot.key.replace("lora_A", "lora_B")])
        for slot in layout.slots
        if slot.factor == "A"
    }


def random_artifact(layout: AdapterLayout, seed: int = 0, scale: float = 0.3) -> AdapterArtifact:
    provenance = Provenance(origin="trained", base="tiny", base_fingerprint="f" * 32, task="toy", prompt="which?")
    return build_artifact(random_factors(layout, seed, scale), layout, provenance)


def stats_of(*layouts: AdapterLayout, num: int = 3, scale: float = 0.3) -> TokenStats:
    """Statistics of a corpus of `num` random adapters a layout."""
    moments = TokenMoments()
    for layout in layouts:
        for seed in range(num):
            moments.add(layout, tokenize(random_factors(layout, seed, scale), layout).tokens_LD)
    return moments.finish()


def toy_task(task_id: str = "toy") -> Task:
    """Is the text about an animal or a plant: solvable from one word."""
    words = {"animal": ("dog", "cat", "bird", "horse"), "plant": ("tree", "fruit", "bread", "stone")}
    rows = [
        Example(text=f"{colour} {word} {verb}", label=label)
        for verb in ("runs", "grows", "sleeps")
        for colour in ("red", "green", "big", "small")
        for label, names in words.items()
        for word in names
    ]
    return Task(
        id=task_id,
        labels=("animal", "plant"),
        prompts=("Decide whether a text is about animal or plant.", "Classify a text as animal or plant."),
        held_out_prompts=(),
        train=tuple(rows[:64]),
        validation=tuple(rows[64:80]),
        test=tuple(rows[80:]),
    )


def words_task() -> Task:
    """The toy task with its labels written out instead of chosen."""
    return toy_task().model_copy(update={"id": "words", "labels": ()})


def small_spec(
    token_dim: int = 24,
    text_dim: int = 12,
    model_dim: int = 10,
    objective: DiffusionObjective | RegressionObjective | None = None,
    condition: ConditionConfig | None = None,
    text_encoder_fingerprint: str = "encoder",
    **generator: object,
) -> GeneratorSpec:
    sizes = {
        "width": 32, "num_layers": 2, "state_dim": 8, "head_dim": 16, "chunk_size": 16, "kernel": "torch",
        "denoiser": MlpDenoiserConfig(width=48, num_blocks=2),
    }  # fmt: skip
    return GeneratorSpec(
        generator=GeneratorConfig(**{**sizes, **generator, "objective": objective or DiffusionObjective()}),
        condition=condition or ConditionConfig(),
        token_dim=token_dim,
        text_dim=text_dim,
        model_dim=model_dim,
        text_encoder_fingerprint=text_encoder_fingerprint,
        architectures=(),
        recipe="recipe-of-a-test",
    )


def shaken_network(spec: GeneratorSpec, seed: int = 0, amount: float = 0.15) -> Network:
    """A network away from its initialisation, whose zeros (adaLN-zero) would make every comparison trivial."""
    network = build_network(spec, seed)
    rng = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng) * amount)
    return network.eval()


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def copy_of_weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
