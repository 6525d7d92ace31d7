"""Check an adapter folder the way a stranger would: does plain peft load it, is it what its digest says, how good is it."""

from pathlib import Path

from oral_ray.adapters.artifact import AdapterArtifact, read_folder
from oral_ray.adapters.lora import load_strictly
from oral_ray.bases.loading import open_base
from oral_ray.config import Dtype
from oral_ray.errors import ArtifactError
from oral_ray.evaluation import correct_answers
from oral_ray.tasks import Split, Task


def verify_adapter(folder: Path, base_source: str, digest: str | None = None) -> AdapterArtifact:
    """The artifact, when it has the digest, fits the base, is finite, and `PeftModel.from_pretrained` takes every key."""
    artifact = read_folder(folder)
    if digest is not None and artifact.digest != digest:
        raise ArtifactError(f"adapter {folder} has digest {artifact.digest}, expected {digest}; pull it again")
    return load_strictly(open_base(base_source), folder)


def score_adapter(
    folder: Path, base_source: str, task: Task, split: Split, limit: int, dtype: Dtype = "float32"
) -> list[bool]:
    """Which examples a base in a dtype answers rightly with the adapter of a folder."""
    return correct_answers(open_base(base_source, dtype), task, [read_folder(folder)], split, limit)[0]
