"""Train one adapter with peft, and attach an artifact to a base. The only room that imports peft for training.

All adapters of one layout start from the same factors (A by `init_seed`, B zero, unless others are given), so that they
end in the same basin (design, gauge). Training reads the train split only.

    artifacts = train_adapter([base], task, layout, config.corpus, seed=0)     # the last K checkpoints, newest last
    with attached(base, artifacts[-1]) as model:
        ...
"""

import contextlib
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from oral_ray.adapters.artifact import CONFIG, WEIGHTS, AdapterArtifact, Provenance, build_artifact, read_folder
from oral_ray.adapters.copies import sharing_weights
from oral_ray.adapters.gauge import Factors
from oral_ray.adapters.intake import Intake, take
from oral_ray.adapters.layout import AdapterLayout
from oral_ray.bases.loading import LoadedBase
from oral_ray.bases.states import PrefixStates
from oral_ray.config import CorpusConfig, derive_seed
from oral_ray.errors import ArtifactError
from oral_ray.modalities import Batch, TaskReader
from oral_ray.tasks import Example, Task
from oral_ray.version import code_version

_ADAPTER = "default"
_PEFT_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError)


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
    readers = [base.reader(task.labels) for base in bases]
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
                base_id=bases[-1].record.id,
                base_fingerprint=bases[-1].record.fingerprint,
                task=task.id,
                prompt=task.prompt,
                seed=seed,
                step=step,
                recipe=recipe,
                code_version=code_version(),
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
    """The base with the artifact attached by peft, in evaluation mode; ArtifactError for what the intake refuses.

    The model shares the base's weights and has modules of its own: the base is as it was, whatever happens.
    """
    yield _attach(base, take(base, artifact))


def _attach(base: LoadedBase, plain: AdapterArtifact) -> nn.Module:
    from peft import LoraConfig, PeftModel  # here and below: it imports half of what is installed

    config = LoraConfig(
        r=plain.config["r"],
        lora_alpha=plain.config["lora_alpha"],
        target_modules=list(plain.config["target_modules"]),
        fan_in_fan_out=plain.config["fan_in_fan_out"],
        init_lora_weights=False,
    )
    try:
        model = PeftModel(sharing_weights(base.model), config, adapter_name=_ADAPTER)
    except _PEFT_ERRORS as error:
        raise _refused(plain.digest[:12], base, error) from None
    parameters = {f"{name}.weight": parameter for name, parameter in _factors(model)}
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    given = {name: tuple(tensor.shape) for name, tensor in plain.tensors.items()}
    if shapes != given:
        odd = sorted({*shapes.items()} ^ {*given.items()})[0]
        raise ArtifactError(
            f"adapter {plain.digest[:12]} does not fit base {base.record.id!r}: {odd[0]} {odd[1]}; give its own base"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(plain.tensors[name])
    return model.eval()


def load_strictly(base: LoadedBase, folder: Path) -> AdapterArtifact:
    """Load a PEFT folder by `PeftModel.from_pretrained`, as a user would; ArtifactError unless every key finds its place.

    Returns the artifact that was read. The base is as it was.
    """
    artifact = read_folder(folder)
    take(base, artifact, str(folder))
    loaded = {f"{name}.weight": parameter for name, parameter in _factors(load_by_peft(base, folder))}
    odd = sorted(loaded.keys() ^ artifact.tensors.keys())
    odd = odd or sorted(name for name in loaded if not torch.equal(loaded[name], artifact.tensors[name].float()))
    if odd:
        raise ArtifactError(
            f"peft does not load {folder} on {base.record.id!r} fully: {len(odd)} keys, first {odd[0]!r}; rename them as "
            "peft names them (base_model.model.<module>.lora_A.weight)"
        )
    return artifact


def load_by_peft(base: LoadedBase, folder: Path) -> nn.Module:
    """What `PeftModel.from_pretrained` makes of a folder that the intake takes; ArtifactError where it raises.

    It is given modules of its own on the base's weights: an initialisation that changed weights would change the base.
    """
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # keys of newer versions, and names that the intake has looked at
            model = PeftModel.from_pretrained(sharing_weights(base.model), str(folder), adapter_name=_ADAPTER)
    except _PEFT_ERRORS as error:
        raise _refused(str(folder), base, error) from None
    return model.eval()


@torch.no_grad()
def difference_from_peft(base: LoadedBase, intake: Intake, folder: Path) -> tuple[float, float]:
    """How far outputs of the taken adapter are from those of peft with the folder, and how large outputs are, at most.

    Outputs are those of the base's modality. Where the intake has renamed tensors, peft, which would pass over them, is
    given them by the names that it knows.
    """
    ours = base.outputs(_attach(base, intake.artifact))
    if intake.is_renamed:
        with tempfile.TemporaryDirectory(prefix="oral-renamed-") as name:
            save_file({key: tensor.contiguous() for key, tensor in intake.named.items()}, Path(name) / WEIGHTS)
            (Path(name) / CONFIG).write_bytes((folder / CONFIG).read_bytes())
            theirs = base.outputs(load_by_peft(base, Path(name)))
    else:
        theirs = base.outputs(load_by_peft(base, folder))
    return float((ours - theirs).abs().max()), float(theirs.abs().max())


def _refused(name: str, base: LoadedBase, error: Exception) -> ArtifactError:
    reason = " ".join(str(error).split())[:300]
    return ArtifactError(f"peft refuses {name} on {base.record.id!r}: {reason}; check its adapter_config.json")


def _with_adapter(base: LoadedBase, layout: AdapterLayout, start: Factors) -> Any:
    from peft import LoraConfig, PeftModel

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
