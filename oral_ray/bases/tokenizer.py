"""The tokenizer of a base without its weights: for checks before anything is trained."""

import tempfile
from pathlib import Path
from typing import Any

from oral_ray.bases.catalog import BaseRecord
from oral_ray.bases.pipeline import is_pipeline
from oral_ray.errors import BaseModelError, TaskError
from oral_ray.modalities import modality_of
from oral_ray.objects import FileObjects, open_objects
from oral_ray.tasks import Task

MAX_FILE_BYTES = 64 * 2**20  # the largest tokenizer.json are half of that
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".onnx", ".h5", ".msgpack")


def load_tokenizer(record: BaseRecord) -> Any:
    """The tokenizer of a base, wherever it lies, None for a pipeline; BaseModelError where transformers cannot load it."""
    objects = open_objects(record.uri)
    if is_pipeline(objects):  # it reads captions as a whole, and chooses no labels
        return None
    if isinstance(objects, FileObjects):
        return _load(objects.root, record)
    with tempfile.TemporaryDirectory() as name:
        for info in objects.list(""):
            if "/" not in info.key and not info.key.endswith(_WEIGHTS) and info.num_bytes <= MAX_FILE_BYTES:
                (Path(name) / info.key).write_bytes(objects.get(info.key))
        return _load(Path(name), record)


def check_task(record: BaseRecord, tokenizer: Any, task: Task) -> None:
    """TaskError where a base, by its tokenizer, cannot tell the labels of a task apart, or cannot write one, or where its
    kind has no metric of the name that the task gives, or does not read what the examples are: texts or images."""
    modality = modality_of(record.spec.kind)
    has_images = bool(task.images)
    if has_images and not modality.of_pipelines:
        raise TaskError(
            "its examples are images, and this base reads text; give it to a base that draws (docs/images.md)"
        )
    if modality.of_pipelines and not has_images:
        raise TaskError(
            "its examples have no images, and this base draws them; give a folder of images (docs/images.md)"
        )
    modality.check_metric(task.metric)
    modality.check_labels(tokenizer, task.labels)


def _load(folder: Path, record: BaseRecord) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BaseModelError(
            f"transformers cannot load the tokenizer of base {record.id!r} at {record.uri}: {reason}; check its files"
        ) from error
