"""Bring a diffusers pipeline into memory, component by component; pickles and code that it brings along are never loaded.

Exactly what was fingerprinted is loaded: every component sees a folder of links to its own files and no others, and its
class is one of diffusers or transformers.

    denoiser, parts = load_pipeline(Path("sd"))
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from oral_ray.bases.building import diffusers_class, transformers_class
from oral_ray.bases.components import check_components, expected_text_encoder
from oral_ray.bases.foreign import transformers_reads
from oral_ray.bases.pipeline import Component, read_pipeline
from oral_ray.bases.sources import SourceFolder
from oral_ray.bases.storage import without_quantization
from oral_ray.bases.view import keep_weights, show
from oral_ray.errors import BaseModelError
from oral_ray.modalities.pictures import PipelineParts


def load_pipeline(folder: Path) -> tuple[nn.Module, PipelineParts]:
    """The denoiser of a pipeline and what is beside it, float32, evaluation mode; BaseModelError where it is not whole."""
    pipeline = read_pipeline(SourceFolder(folder))
    check_components(pipeline, str(folder))
    with tempfile.TemporaryDirectory(prefix="oral-load-") as name:
        loaded = {part.name: _load(part, folder / part.name, Path(name) / part.name) for part in pipeline.components}
    denoiser = loaded.pop(pipeline.denoiser.name)
    pipeline_class = diffusers_class(pipeline.class_name, "DiffusionPipeline")
    return denoiser, PipelineParts(pipeline_class, pipeline.denoiser.name, loaded, pipeline.settings)


def _load(part: Component, folder: Path, view: Path) -> Any:
    """A component, from links to those of its files that count."""
    view.mkdir()
    show(part.checkpoint.files, folder, view, _shown_config(part) if part.is_model else None)
    with transformers_reads(f"the component at {folder}", part.library):
        if part.is_tokenizer:
            cls = transformers_class(part.class_name, "PreTrainedTokenizerBase")
            return cls.from_pretrained(str(view), local_files_only=True)
        if part.is_scheduler:
            return diffusers_class(part.class_name, "SchedulerMixin").from_config(part.checkpoint.config)
        model, report = _load_model(part, view)
    for keys in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(keys) and part.library == "diffusers":
            raise BaseModelError(f"{folder}: {keys} {sorted(map(str, report[keys]))[0]!r}; upload the whole pipeline")
    keep_weights(model, str(folder))
    return model.eval().requires_grad_(False)


def _shown_config(part: Component) -> dict[str, Any]:
    config = without_quantization(part.checkpoint.config)
    if part.library == "diffusers":
        del config["model_type"]  # its own word for a type is _class_name
    return config


def _load_model(part: Component, view: Path) -> tuple[Any, Mapping[str, Any]]:
    options = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    if part.library == "diffusers":
        cls = diffusers_class(part.class_name)
        return cls.from_pretrained(
            str(view), torch_dtype=torch.float32, low_cpu_mem_usage=False, disable_mmap=True, **options
        )
    cls = transformers_class(part.class_name, "PreTrainedModel")
    model, report = cls.from_pretrained(str(view), dtype=torch.float32, trust_remote_code=False, **options)
    expected = expected_text_encoder(model, part.checkpoint.config)
    expected.check_missing(report["missing_keys"], part.checkpoint.tensors, str(view))
    expected.check_left_over(report["unexpected_keys"], str(view))
    return model, report
