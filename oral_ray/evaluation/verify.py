"""Check an adapter folder the way a stranger would: what it is, which base it is for, whether peft computes the same.

found = verify_adapter(Path("my-adapter"), "oral-store/bases/minilm-l6-t3")
found.verdict, found.reason        # "ok", "this base by its fingerprint"
"""

import math
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from oral_ray.adapters.artifact import AdapterArtifact, read_folder
from oral_ray.adapters.intake import Intake, take_in
from oral_ray.adapters.lora import difference_from_peft
from oral_ray.adapters.matching import key_of
from oral_ray.bases.loading import LoadedBase, open_base
from oral_ray.config import Dtype, Record
from oral_ray.errors import ArtifactError
from oral_ray.evaluation.scoring import example_values, metric_of
from oral_ray.tasks import Split, load_task

_TOLERANCE = 1e-4  # of the largest output: float32 through a hundred layers; the tests hold small models to 1e-5


class Verification(Record):
    """What an adapter folder is, and the one verdict on it with its reason.

    `other weights` is a warning: the adapter was made on another version of this architecture. `change` is the largest
    norm of a change relative to its weight's, `difference` the largest of outputs (logits, hidden states) from peft's.
    `lora_alpha` is that of the plain LoRA which computes the same, `file_alpha` what the file says.
    """

    adapter: str
    base: str
    digest: str
    kind: str
    r: int
    lora_alpha: float
    file_alpha: float
    target_modules: tuple[str, ...]
    num_modules: int
    num_parameters: int
    dtype: str
    named_base: str
    change: float
    difference: float
    verdict: Literal["ok", "other weights", "changes nothing"]
    reason: str

    @property
    def _alpha_text(self) -> str:
        plain = f"{self.lora_alpha:g}"
        return plain if self.file_alpha == self.lora_alpha else f"{self.file_alpha:g} ({plain} as a plain LoRA)"

    @property
    def text(self) -> str:
        """The lines for a reader, the verdict last."""
        names = ", ".join(self.target_modules[:8]) + (", ..." if len(self.target_modules) > 8 else "")
        return (
            f"adapter     {self.adapter}\n"
            f"digest      {self.digest}\n"
            f"kind        {self.kind}, r={self.r}, alpha={self._alpha_text}, {self.dtype}\n"
            f"adapts      {self.num_modules} modules ({names}), {self.num_parameters:,} parameters\n"
            f"made for    {self.named_base or 'no base that it names'}\n"
            f"base        {self.base}\n"
            f"change      {self.change:.3g} of a weight's norm at most\n"
            f"difference  {self.difference:.2g} from peft's outputs at most\n"
            f"{self.verdict}: {self.reason}"
        )


class AdapterScore(Record):
    """One cell of a table, computed again: the figure of the first n examples of a split by a metric (its name)."""

    task: str
    split: Split
    metric: str
    value: float
    n: int


def verify_adapter(folder: Path, base_source: str, digest: str | None = None) -> Verification:
    """What the adapter of a folder is on a base; ArtifactError, one sentence, where it has none or cannot be used there."""
    artifact = read_folder(folder)
    if digest is not None and artifact.digest != digest:
        raise ArtifactError(f"adapter {folder} has digest {artifact.digest}, expected {digest}; pull it again")
    base = open_base(base_source)
    intake = take_in(base, artifact, str(folder))
    change = _largest_change(base, intake.artifact)
    difference, size = difference_from_peft(base, intake, folder)
    if not math.isfinite(size):
        raise ArtifactError(
            f"adapter {folder} makes the outputs of {base_source} not finite: it changes a weight by {change:.3g} of its "
            "norm; its alpha or its factors are too large, train it again"
        )
    if not difference <= _TOLERANCE * max(1.0, size):
        raise ArtifactError(
            f"adapter {folder} computes other values with peft: they differ by {difference:.3g} of {size:.3g}; report it, "
            "with the adapter, as a defect of oral_ray"
        )
    verdict, reason = _verdict(base, artifact, change)
    lora = intake.artifact.lora
    return Verification(
        adapter=str(folder),
        base=base_source,
        digest=artifact.digest,
        kind=_kind(artifact, intake),
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        file_alpha=float(artifact.config.get("lora_alpha", lora.lora_alpha)),
        target_modules=lora.target_modules,
        num_modules=len(intake.artifact.tensors) // 2,
        num_parameters=sum(tensor.numel() for tensor in artifact.tensors.values()),
        dtype=", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in artifact.tensors.values()})),
        named_base=_named_base(artifact),
        change=change,
        difference=difference,
        verdict=verdict,
        reason=reason,
    )


def score_adapter(
    folder: Path, base_source: str, task_id: str, split: Split, limit: int, dtype: Dtype = "float32"
) -> AdapterScore:
    """The score of an adapter folder on a base in a dtype and a task, by its id or by the path of its folder."""
    task = load_task(task_id)
    artifact = read_folder(folder)
    base = open_base(base_source, dtype)
    taken = take_in(base, artifact, str(folder)).artifact
    [values] = example_values(base, task, [taken], split, limit)
    metric = metric_of(base, task)
    figure = metric.figure(np.array(values))
    return AdapterScore(task=task.id, split=split, metric=metric.name, value=figure, n=len(values))


def _verdict(
    base: LoadedBase, artifact: AdapterArtifact, change: float
) -> tuple[Literal["ok", "other weights", "changes nothing"], str]:
    if not change:
        return "changes nothing", "every lora_B @ lora_A is zero, the base answers the same without it; train it"
    made_on, record, named = artifact.provenance.base_fingerprint, base.record, _named_base(artifact)
    if made_on == record.fingerprint:
        return "ok", "this base by its fingerprint"
    if made_on:
        return "other weights", (
            f"it was made on {named!r} of fingerprint {made_on[:16]}, this base has {record.fingerprint[:16]}: another "
            "version of the same architecture; score it before you use it"
        )
    if not named:
        return "ok", "it names no base, and fits this one"
    if _is_same_name(named, record.id):
        return "ok", "this base by its name"
    return "other weights", (
        f"it names base {named!r}, this is {record.id!r}: the architecture fits, whether the weights are the same is not "
        "known; score it before you use it"
    )


def _named_base(artifact: AdapterArtifact) -> str:
    named = artifact.config.get("base_model_name_or_path")
    return named if isinstance(named, str) else artifact.provenance.base


def _is_same_name(named: str, base: str) -> bool:
    """Whether two names may mean one base: two paths are compared whole, other names by their last part."""
    one, other = (Path(name.removeprefix("file://")) for name in (named, base))
    if one.is_absolute() and other.exists():
        return one.resolve() == other.resolve()
    return _last_part(named) == _last_part(base)


def _last_part(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].rpartition(":")[2].lower()


def _kind(artifact: AdapterArtifact, intake: Intake) -> str:
    config = artifact.config
    words = ["rank-stabilised LoRA" if config.get("use_rslora") else "LoRA"]
    words += ["of several ranks"] if config.get("rank_pattern") else []
    words += ["of several alphas"] if config.get("alpha_pattern") else []
    words += ["with its tensors renamed"] if intake.is_renamed else []
    return " ".join(words)


def _largest_change(base: LoadedBase, plain: AdapterArtifact) -> float:
    """The largest ||scale * B @ A|| / ||W|| over the modules, in Frobenius norms; the product is never formed."""
    scale, largest = plain.lora.lora_alpha / plain.lora.r, 0.0
    for module in {key.removeprefix("base_model.model.").rpartition(".lora_")[0] for key in plain.tensors}:
        a, b = (plain.tensors[key_of(module, factor)].double() for factor in "AB")
        norm = float(torch.sum((a @ a.T) * (b.T @ b)).clamp(min=0).sqrt()) * scale  # ||BA||^2 = tr(A A' B' B)
        weight = base.model.get_parameter(f"{module}.weight")
        largest = max(largest, norm / max(float(weight.detach().float().norm()), 1e-30))
    return largest
