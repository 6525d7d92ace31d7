"""An adapter artifact: a PEFT folder in memory, its digest, and where it came from.

Files: `adapter_model.safetensors`, `provenance.json`, `README.md` (a model card, on publication), and
`adapter_config.json`, always written LAST: serving engines take it as the sign that the rest is there. The digest is
the SHA-256 over the canonical adapter_config.json and the tensors; provenance lies beside it, not in it.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, Field, ValidationError
from safetensors.numpy import save as save_arrays
from safetensors.torch import save
from torch import Tensor

from oral_ray.adapters.gauge import Factors
from oral_ray.adapters.layout import AdapterLayout
from oral_ray.adapters.reading import CONFIG, WEIGHTS, explain_no_config, explain_no_weights, parse_json, parse_tensors
from oral_ray.adapters.settings import read_settings
from oral_ray.config import LoraSettings, Record, canonical_json
from oral_ray.errors import ArtifactError, LayoutError, StoreError

PROVENANCE, CARD = "provenance.json", "README.md"


class Provenance(Record):
    """How an adapter's content was made; empty strings where something does not apply.

    `origin` says how (`trained`, `joint`, `generated`, `mean`, ...), `base` for which base, `task` what it was trained on.
    Equal content has one provenance, whatever it is used for: arm, task and score of a use stand in the release, the
    answer or the score, so a generated adapter, which is made from a prompt, has no task here.

    `recipe` names the training run of a trained adapter; `generator` and `sampling` (settings as JSON) what a generated
    one came from, `scale` (`strength` where it is stored) what its change of the weights was multiplied by. An adapter
    that is released for another base than it was made for, or under another name of its base, names that base; `source` is
    then the digest of the adapter with the same tensors, made for `source_base`, and `served_name` the name where it is
    not the base's id.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    origin: str
    base: str
    base_fingerprint: str
    task: str = ""
    prompt: str = ""
    seed: int = 0
    scale: float = Field(default=1.0, alias="strength")
    step: int = 0
    generator: str = ""
    sampling: str = ""
    recipe: str = ""
    code_version: str = ""
    served_name: str = ""
    source: str = ""
    source_base: str = ""
    source_base_fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class AdapterArtifact:
    """An adapter: peft's configuration, tensors by peft's names (float32), provenance."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    provenance: Provenance

    @property
    def digest(self) -> str:
        """64 hex digits naming configuration and tensors."""
        digest = hashlib.sha256(canonical_json(self.config).encode())
        for name in sorted(self.tensors):
            tensor = self.tensors[name].detach().contiguous()
            digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def lora(self) -> LoraSettings:
        """Rank, effective alpha and target modules; ArtifactError for what only a base or more than LoRA can tell.

        The change of a weight is lora_alpha / r * B @ A, also where peft's own alpha is rank-stabilised.
        """
        settings = read_settings(self.config, f"of base {self.provenance.base!r}")
        if not settings.is_uniform:
            raise ArtifactError(
                "an adapter whose target_modules is no list, or whose ranks, scales or layers differ, is known on its base "
                "only: take it in there (oral_ray.adapters.intake)"
            )
        targets = settings.target_modules or ()
        return LoraSettings(
            r=settings.r, lora_alpha=settings.effective_alpha, target_modules=tuple(sorted(set(targets)))
        )

    def factors(self, layout: AdapterLayout) -> Factors:
        """The factors by module; ArtifactError where names, shapes or values do not fit the layout."""
        self.check(layout)
        return {
            slot.module: (self.tensors[slot.key], self.tensors[slot.key.replace(".lora_A.", ".lora_B.")])
            for slot in layout.slots
            if slot.factor == "A"
        }

    def check(self, layout: AdapterLayout, name: str = "") -> None:
        """Raise ArtifactError unless this adapter has exactly the layout's tensors and only finite values.

        `name` is what a refusal calls it, such as its folder; its digest, task and base where nothing is given.
        """
        made_for = f"{self.digest[:12]} of task {self.provenance.task!r} on base {self.provenance.base!r}"
        name = f"adapter {name or made_for}"
        try:
            layout.check_shapes({key: tuple(tensor.shape) for key, tensor in self.tensors.items()}, name)
        except LayoutError as error:
            raise ArtifactError(f"{error}; train or generate it again with r={layout.lora.r}") from None
        for key, tensor in self.tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise ArtifactError(f"{name} holds values that are not finite in {key}; discard it and train it again")

    def files(self) -> dict[str, bytes]:
        """The artifact's files by name, in the order in which they must be written."""
        tensors = {name: tensor.detach().contiguous() for name, tensor in sorted(self.tensors.items())}
        return {
            WEIGHTS: _saved(tensors),
            PROVENANCE: canonical_json(self.provenance).encode(),
            CONFIG: canonical_json(self.config).encode(),
        }


def _saved(tensors: dict[str, Tensor]) -> bytes:
    """The bytes of a weights file. numpy's writer makes the same ones four times faster; it knows no bfloat16."""
    if all(tensor.dtype == torch.float32 for tensor in tensors.values()):
        return save_arrays({name: tensor.numpy() for name, tensor in tensors.items()}, metadata={"format": "pt"})
    return save(tensors, metadata={"format": "pt"})


def build_artifact(factors: Factors, layout: AdapterLayout, provenance: Provenance) -> AdapterArtifact:
    """Wrap factors as an artifact that plain peft loads; ArtifactError where they do not fit the layout."""
    config = peft_config(layout, provenance.base)
    tensors = {slot.key: factors[slot.module][slot.factor == "B"].float().contiguous() for slot in layout.slots}
    artifact = AdapterArtifact(config, tensors, provenance)
    artifact.check(layout)
    return artifact


def rebased(artifact: AdapterArtifact, base_id: str, base_fingerprint: str, served_name: str = "") -> AdapterArtifact:
    """The adapter as it is released for a base: same tensors, and a configuration that names that base as it is served.

    `served_name` is the base's id where it is empty. An adapter that says all that already stays as it is.
    """
    name = served_name or base_id
    made = artifact.provenance
    config = artifact.config | {"base_model_name_or_path": name}
    if config == artifact.config and (made.base, made.base_fingerprint) == (base_id, base_fingerprint):
        return artifact
    said = {
        "base": base_id,
        "base_fingerprint": base_fingerprint,
        "served_name": name if name != base_id else "",
        "source": artifact.digest,
        "source_base": made.base,
        "source_base_fingerprint": made.base_fingerprint,
    }
    return AdapterArtifact(config, artifact.tensors, made.model_copy(update=said))


def peft_config(layout: AdapterLayout, base: str) -> dict[str, Any]:
    """adapter_config.json of an adapter of this layout; `base` is the name under which its base is loaded or served."""
    alpha = layout.lora.lora_alpha
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "r": layout.lora.r,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "target_modules": list(layout.target_modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": layout.fan_in_fan_out,
        "inference_mode": True,
    }


def parse_artifact(files: dict[str, bytes], name: str) -> AdapterArtifact:
    """An artifact from its files; ArtifactError for what is damaged. Shapes are checked against a layout later."""
    config, provenance = parse_about(files, name)
    return AdapterArtifact(config, parse_tensors(_file(files, WEIGHTS, name), name), provenance)


def parse_about(files: dict[str, bytes], name: str) -> tuple[dict[str, Any], Provenance]:
    """Configuration and provenance from their files; ArtifactError for what is damaged."""
    config, provenance = parse_json(_file(files, CONFIG, name), CONFIG, name), _file(files, PROVENANCE, name)
    try:
        return config, Provenance.model_validate_json(provenance)
    except ValidationError as error:
        raise ArtifactError(f"adapter {name} is damaged: {' '.join(str(error).split())[:300]}") from None


def _file(files: dict[str, bytes], file: str, name: str) -> bytes:
    if file not in files:
        raise ArtifactError(f"adapter {name} has no {file}; it is incomplete, publish it again")
    return files[file]


def read_folder(folder: Path) -> AdapterArtifact:
    """An artifact from a PEFT folder on disk; ArtifactError names what lies there instead.

    A folder of another tool's making, or with a provenance.json that is no Provenance, gets a bare provenance.
    """
    config = parse_json(_read(folder, CONFIG), CONFIG, _printable(folder))
    try:
        is_there = (folder / WEIGHTS).is_file() and "fine_tune_type" not in config
        data = (folder / WEIGHTS).read_bytes() if is_there else b""
        provenance = (folder / PROVENANCE).read_bytes() if (folder / PROVENANCE).is_file() else b""
    except OSError as error:
        raise ArtifactError(f"cannot read {_printable(folder)}: {error.strerror}; check its permissions") from None
    if not is_there:
        raise ArtifactError(explain_no_weights(folder, config).encode(errors="backslashreplace").decode())
    return AdapterArtifact(config, parse_tensors(data, _printable(folder)), _own(provenance))


def read_about(folder: Path) -> tuple[dict[str, Any], Provenance]:
    """Configuration and provenance of a PEFT folder; its weights are not read. ArtifactError for what is damaged."""
    files = {CONFIG: _read(folder, CONFIG), PROVENANCE: canonical_json(_BARE).encode()}
    if (folder / PROVENANCE).is_file():
        files[PROVENANCE] = _read(folder, PROVENANCE)
    return parse_about(files, _printable(folder))


_BARE = Provenance(origin="unknown", base="", base_fingerprint="")


def _read(folder: Path, file: str) -> bytes:
    try:
        if not (folder / file).is_file():
            raise ArtifactError(explain_no_config(folder).encode(errors="backslashreplace").decode())
        return (folder / file).read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot read {_printable(folder)}/{file}: {error.strerror}; check the path") from None


def _own(provenance: bytes) -> Provenance:
    try:
        return Provenance.model_validate_json(provenance)
    except ValidationError:  # none, another tool's file of that name, or one of a newer version
        return _BARE


def _printable(path: Path) -> str:
    """The path as text that any stream takes: bytes of a name that are no UTF-8 are written out."""
    return str(path).encode(errors="backslashreplace").decode()


def write_folder(artifact: AdapterArtifact, folder: Path) -> Path:
    """Write an artifact as a PEFT folder, adapter_config.json last; StoreError where the disk refuses."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in artifact.files().items():
            (folder / name).write_bytes(data)
    except OSError as error:
        raise StoreError(f"cannot write {folder}: {error.strerror}; choose another folder") from None
    return folder
