"""The components of a diffusers pipeline, checked against their classes before they are loaded, and loaded.

Exactly what was fingerprinted is loaded: every component sees a folder of links to its own files and no others, its class
is one of diffusers or transformers, and a tensor that is missing, left over or of another shape is refused by its name.

    check_components(read_pipeline(files, prefix), where)
    denoiser, parts = load_pipeline(Path("sd"))
"""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from oral_ray.bases.building import build_component, config_object, diffusers_class, transformers_class
from oral_ray.bases.checkpoint import CONFIG
from oral_ray.bases.expected import ExpectedModel
from oral_ray.bases.foreign import transformers_reads
from oral_ray.bases.headers import FLOAT_DTYPES, TensorEntry
from oral_ray.bases.pipeline import Component, PipelineFolder, read_pipeline
from oral_ray.bases.sizes import check_sizes
from oral_ray.bases.sources import SourceFolder
from oral_ray.bases.storage import without_quantization
from oral_ray.errors import BaseModelError
from oral_ray.modalities import kind_of_config
from oral_ray.modalities.pictures import PipelineParts

_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""How attention of autoencoders was named before diffusers 0.17, which still reads it."""


def check_components(folder: PipelineFolder, where: str) -> None:
    """BaseModelError unless every component that has weights gets each of its tensors, in its shape, and no others."""
    for part in folder.components:
        if part.is_model:
            _check(part, f"{where}/{part.name}")


def load_pipeline(folder: Path) -> tuple[nn.Module, PipelineParts]:
    """The denoiser of a pipeline and everything beside it, float32, evaluation mode; BaseModelError where one is not whole."""
    pipeline = read_pipeline(SourceFolder(folder))
    check_components(pipeline, str(folder))
    with tempfile.TemporaryDirectory(prefix="oral-load-") as name:
        loaded = {part.name: _load(part, folder / part.name, Path(name) / part.name) for part in pipeline.components}
    denoiser = loaded.pop(pipeline.denoiser.name)
    pipeline_class = diffusers_class(pipeline.class_name, "DiffusionPipeline")
    return denoiser, PipelineParts(pipeline_class, pipeline.denoiser.name, loaded, pipeline.settings)


def _check(part: Component, where: str) -> None:
    config, tensors = part.checkpoint.config, part.checkpoint.tensors
    check_sizes(config, where)
    try:
        model = build_component(part.library, part.class_name, config)
    except BaseModelError as error:
        raise BaseModelError(f"{where}/{CONFIG}: {error}") from None
    if part.library == "transformers":
        kind = kind_of_config(config, config_object(config))
        assert kind is not None, "what no other kind claims of transformers' models is an encoder"
        ExpectedModel(model, kind).check(tensors, where)
        return
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {_present_name(name, shapes): entry for name, entry in tensors.items()}
    if missing := [name for name in shapes if name not in found]:
        raise BaseModelError(
            f"{where} lacks {missing[0]!r} ({len(missing)} of the {len(shapes)} tensors of a {part.class_name}); upload the "
            "whole component, with the config.json that belongs to it"
        )
    if unused := sorted(found.keys() - shapes.keys()):
        raise BaseModelError(
            f"{where} holds {unused[0]!r}, which a {part.class_name} of this config.json does not use; upload the "
            "config.json that belongs to the weights"
        )
    for name, shape in shapes.items():
        _check_entry(name, found[name], shape, where)


def _check_entry(name: str, entry: TensorEntry, shape: tuple[int, ...], where: str) -> None:
    if entry.shape != shape:
        raise BaseModelError(
            f"{where}: {name!r} is {entry.shape}, config.json says {shape}; upload the config.json that belongs to the "
            "weights"
        )
    if entry.dtype not in FLOAT_DTYPES:
        raise BaseModelError(f"{where}: {name!r} is stored as {entry.dtype}, which is no weight; take the original")


def _present_name(name: str, shapes: Mapping[str, Any]) -> str:
    """The name by which diffusers knows a tensor that an older version of it has saved."""
    parts = name.split(".")
    renamed = ".".join([*parts[:-2], _OLD_NAMES.get(parts[-2], parts[-2]), parts[-1]]) if len(parts) > 2 else name
    return name if name in shapes else renamed


def _load(part: Component, folder: Path, view: Path) -> Any:
    """A component, from links to those of its files that count."""
    view.mkdir()
    for file in part.checkpoint.files:
        (view / file).symlink_to(os.path.realpath(folder / file))
    with transformers_reads(f"the component at {folder}", part.library):
        if part.is_tokenizer:
            cls = transformers_class(part.class_name, "PreTrainedTokenizerBase")
            return cls.from_pretrained(str(view), local_files_only=True)
        if part.is_scheduler:
            return diffusers_class(part.class_name, "SchedulerMixin").from_config(part.checkpoint.config)
        config = without_quantization(part.checkpoint.config)
        if part.library == "diffusers":
            del config["model_type"]  # its own word for a type is _class_name
        (view / CONFIG).unlink()
        (view / CONFIG).write_text(json.dumps(config))
        model, report = _load_model(part, view)
    for keys in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(keys) and part.library == "diffusers":
            raise BaseModelError(f"{folder}: {keys} {sorted(map(str, report[keys]))[0]!r}; upload the whole pipeline")
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        value.data = value.data.clone()  # float32 weights may be the mapped file itself
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise BaseModelError(f"{folder}: {name} holds values that are not finite; do not use this base")
    return model.eval().requires_grad_(False)


def _load_model(part: Component, view: Path) -> tuple[Any, Mapping[str, Any]]:
    options = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    if part.library == "diffusers":
        cls = diffusers_class(part.class_name)
        return cls.from_pretrained(
            str(view), torch_dtype=torch.float32, low_cpu_mem_usage=False, disable_mmap=True, **options
        )
    cls = transformers_class(part.class_name, "PreTrainedModel")
    model, report = cls.from_pretrained(str(view), dtype=torch.float32, trust_remote_code=False, **options)
    kind = kind_of_config(part.checkpoint.config, model.config)
    assert kind is not None, "what no other kind claims of transformers' models is an encoder"
    expected = ExpectedModel(model, kind)
    expected.check_missing(report["missing_keys"], part.checkpoint.tensors, str(view))
    expected.check_left_over(report["unexpected_keys"], str(view))
    return model, report
