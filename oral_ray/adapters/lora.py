"""Train one adapter with peft, and attach an artifact to a base. The only room that imports peft for training.

All adapters of one layout start from the same factors (A by `init_seed`, B zero, unless others are given), so that they
end in the same basin (design, gauge). Training reads the train split only.

    artifacts = train_adapter([base], task, layout, config.corpus, seed=0)     # the last K checkpoints, newest last
    with attached(base, artifacts[-1]) as model:
        ...
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn

from oral_ray import __version__
from oral_ray.adapters.artifact import AdapterArtifact, Provenance, build_artifact, read_folder
from oral_ray.adapters.gauge import Factors
from oral_ray.adapters.layout import AdapterLayout
from oral_ray.bases.loading import LoadedBase
from oral_ray.bases.states import PrefixStates
from oral_ray.config import CorpusConfig, derive_seed
from oral_ray.errors import ArtifactError
from oral_ray.modalities import Batch, TaskReader, modality_of
from oral_ray.tasks import Example, Task

_ADAPTER = "default"


def train_adapter(
    bases: Sequence[LoadedBase], task: Task, layout: AdapterLayout, training: CorpusConfig, seed: int, recipe: str = "",
    keep: Path | None = None, start: Factors | None = None,
) -> list[AdapterArtifact]:  # fmt: skip
    """Train one adapter on one base, or jointly on several versions of one architecture (arm `joint`).

    With n bases the same factors live on all of them, each step uses the next base, and there are n x `steps` steps, so
    that the total equals n single trainings; n times one base is a training n times as long. Returns the last
    `keep_last` checkpoints, one a step, newest last. With a folder `keep` what lies below the first adapted layer is
    computed once for each of the examples and kept there. `start` are the factors to begin with, instead of a fresh
    adapter's.
    """
    examples = task.examples("train")
    start = start or initial_factors(layout, training.init_seed)
    models = [_with_adapter(base, layout, start) for base in bases]
    parameters = dict(_factors(models[0]))
    for model in models[1:]:
        _share(model, parameters)
    readers = [modality_of(base.record.spec.kind).reader(base.model, base.tokenizer, task.labels) for base in bases]
    if keep is not None:
        reads = [_from_states(base, task, reader, layout, keep) for base, reader in zip(bases, readers, strict=True)]
    else:
        reads = [_from_text(reader, examples) for reader in readers]
    for model in models:
        model.enable_adapter_layers()
    optimizer = torch.optim.AdamW(list(parameters.values()), lr=training.learning_rate)
    batches = _batches(examples, training.batch_size, derive_seed(seed, "batches", task.id))
    num_steps = training.steps * len(bases)
    artifacts = []
    for step in range(1, num_steps + 1):
        turn = step % len(bases)
        model, reader = models[turn], readers[turn]
        batch = reads[turn](next(batches))
        loss = reader.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step > num_steps - training.keep_last:
            provenance = Provenance(
                origin="joint" if len({base.record.id for base in bases}) > 1 else "trained",
                base=bases[-1].record.id,
                base_fingerprint=bases[-1].record.fingerprint,
                task=task.id,
                prompt=task.prompt,
                seed=seed,
                step=step,
                recipe=recipe,
                code_version=__version__,
            )
            artifacts.append(build_artifact(_snapshot(models[0], layout), layout, provenance))
    for model in models:
        model.unload()
    return artifacts


def initial_factors(layout: AdapterLayout, init_seed: int) -> Factors:
    """What every training of a layout starts from: A uniform, B zero."""
    slots = {(slot.module, slot.factor): slot for slot in layout.slots}
    r, found = layout.lora.r, {}
    for module in dict.fromkeys(slot.module for slot in layout.slots):
        d_in, d_out = slots[module, "A"].d_in, slots[module, "A"].d_out
        name = f"base_model.model.{module}.lora_A"
        found[module] = (_initial_a(name, torch.Size((r, d_in)), init_seed), torch.zeros(d_out, r))
    return found


def _initial_a(name: str, shape: torch.Size, init_seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(derive_seed(init_seed, "lora-init", shape[0], name))
    return (torch.rand(shape, generator=rng) * 2 - 1) * shape[1] ** -0.5


@contextlib.contextmanager
def attached(base: LoadedBase, artifact: AdapterArtifact) -> Iterator[nn.Module]:
    """The base with the artifact attached by peft, strictly; the base is as before afterwards."""
    _check_fit(base, artifact)
    known = {field.name for field in dataclasses.fields(LoraConfig)} - {"peft_type"}  # other versions of peft have more
    config = {key: value for key, value in artifact.config.items() if key in known}
    model = PeftModel(base.model, LoraConfig(**{**config, "init_lora_weights": False}), adapter_name=_ADAPTER)
    try:
        parameters = {f"{name}.weight": parameter for name, parameter in _factors(model)}
        shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        given = {name: tuple(tensor.shape) for name, tensor in artifact.tensors.items()}
        if shapes != given:
            odd = sorted({*shapes.items()} ^ {*given.items()})[0]
            raise ArtifactError(
                f"adapter {artifact.digest[:12]} does not fit base {base.record.id!r}: {odd[0]} {odd[1]}"
            )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(artifact.tensors[name])
        yield model.eval()
    finally:
        model.unload()


def load_strictly(base: LoadedBase, folder: Path) -> AdapterArtifact:
    """Load a PEFT folder by `PeftModel.from_pretrained`, as a user would; ArtifactError unless every key finds its place.

    Returns the artifact that was read. The base is as before afterwards.
    """
    artifact = read_folder(folder)
    _check_fit(base, artifact)
    try:
        model = PeftModel.from_pretrained(base.model, str(folder), adapter_name=_ADAPTER)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ArtifactError(
            f"peft refuses {folder} on {base.record.id!r}: {reason}; check its adapter_config.json"
        ) from None
    try:
        loaded = {f"{name}.weight": parameter for name, parameter in _factors(model)}
        odd = sorted(loaded.keys() ^ artifact.tensors.keys())
        odd = odd or sorted(name for name in loaded if not torch.equal(loaded[name], artifact.tensors[name]))
        if odd:
            raise ArtifactError(
                f"peft does not load {folder} on {base.record.id!r} fully: {len(odd)} keys, first {odd[0]!r}"
            )
    finally:
        model.unload()
    return artifact


def _check_fit(base: LoadedBase, artifact: AdapterArtifact) -> None:
    """Before peft touches the base: where it fails half-way, its layers would stay in the model."""
    artifact.check(AdapterLayout.of(base.record.spec, artifact.lora, token_dim=base.record.spec.hidden_size))


def _with_adapter(base: LoadedBase, layout: AdapterLayout, start: Factors) -> Any:
    config = LoraConfig(
        r=layout.lora.r,
        lora_alpha=layout.lora.lora_alpha,  # type: ignore[arg-type]
        target_modules=list(layout.target_modules),
        fan_in_fan_out=layout.fan_in_fan_out,
        init_lora_weights=False,
    )
    model = PeftModel(base.model, config, adapter_name=_ADAPTER)
    with torch.no_grad():
        for name, parameter in _factors(model):
            module, factor = name.removeprefix("base_model.model.").rsplit(".", 1)
            parameter.copy_(start[module][("lora_A", "lora_B").index(factor)])
    model.disable_adapter_layers()
    return model


def _factors(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    suffix = f".{_ADAPTER}.weight"
    for name, parameter in model.named_parameters():
        if name.endswith(suffix) and (".lora_A." in name or ".lora_B." in name):
            yield name.removesuffix(suffix), parameter


def _share(model: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    for name, _ in list(_factors(model)):
        model.get_submodule(f"{name}.{_ADAPTER}").weight = parameters[name]


def _snapshot(model: nn.Module, layout: AdapterLayout) -> Factors:
    tensors: dict[str, Tensor] = {name: parameter.detach().cpu().clone() for name, parameter in _factors(model)}
    return {
        slot.module: (
            tensors[f"base_model.model.{slot.module}.lora_A"],
            tensors[f"base_model.model.{slot.module}.lora_B"],
        )
        for slot in layout.slots
        if slot.factor == "A"
    }


def _from_text(reader: TaskReader, examples: Sequence[Example]) -> Callable[[Sequence[int]], Batch]:
    return lambda chosen: reader.read([examples[i] for i in chosen])


def _from_states(base: LoadedBase, task: Task, reader: TaskReader, layout: AdapterLayout, keep: Path) -> PrefixStates:
    weights, texts = base.record.fingerprint, task.fingerprint
    return PrefixStates(base, reader, task.examples("train"), layout.first_layer, keep, weights, texts)


def _batches(examples: Sequence[Example], batch_size: int, seed: int) -> Iterator[list[int]]:
    """Endless batches (indices) of examples of similar length: pools of 8 batches are sorted, cut, and shuffled."""
    rng = torch.Generator().manual_seed(seed)
    pool_size = min(8 * batch_size, len(examples))
    queue: list[int] = []
    while True:
        while len(queue) < pool_size:
            queue += torch.randperm(len(examples), generator=rng).tolist()
        pool, queue = sorted(queue[:pool_size], key=lambda i: len(examples[i].text)), queue[pool_size:]
        batches = [pool[start : start + batch_size] for start in range(0, pool_size, batch_size)]
        for i in torch.randperm(len(batches), generator=rng).tolist():
            yield batches[i]
