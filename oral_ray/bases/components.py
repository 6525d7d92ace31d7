"""The components of a diffusers pipeline, checked against their own classes on the meta device. No weights are read.

A tensor that is missing, left over, of another shape or of another dtype is refused by its name.

    check_components(read_pipeline(files, prefix), where)
"""

from collections.abc import Mapping
from typing import Any

from oral_ray.bases.building import build_component, config_object
from oral_ray.bases.checkpoint import CONFIG
from oral_ray.bases.expected import ExpectedModel
from oral_ray.bases.headers import FLOAT_DTYPES, TensorEntry
from oral_ray.bases.pipeline import Component, PipelineFolder
from oral_ray.bases.sizes import check_sizes
from oral_ray.errors import BaseModelError

_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""How attention of autoencoders was named before diffusers 0.17, which still reads it."""


def check_components(folder: PipelineFolder, where: str) -> None:
    """BaseModelError unless every component that has weights gets each of its tensors, in its shape, and no others.

    A pipeline of a class that nothing here draws with is refused, too.
    """
    from oral_ray.modalities.pictures import FAMILIES  # torch

    if folder.class_name not in FAMILIES:
        raise BaseModelError(
            f"{where} is a {folder.class_name}; adapters are trained with {', '.join(FAMILIES)}, of others there are "
            f"layouts only (give the {folder.denoiser.name} folder to inspect)"
        )
    for part in folder.components:
        if part.is_model:
            _check(part, f"{where}/{part.name}")


def expected_text_encoder(model: Any, config: Mapping[str, Any]) -> ExpectedModel:
    """What a text encoder of a pipeline has to hold; `model` is one, on whatever device."""
    from oral_ray.modalities import kind_of_config  # torch

    kind = kind_of_config(config, config_object(config))
    assert kind is not None, "what no other kind claims of transformers' models is an encoder"
    return ExpectedModel(model, kind)


def _check(part: Component, where: str) -> None:
    config, tensors = part.checkpoint.config, part.checkpoint.tensors
    check_sizes(config, where)
    try:
        model = build_component(part.library, part.class_name, config)
    except BaseModelError as error:
        raise BaseModelError(f"{where}/{CONFIG}: {error}") from None
    if part.library == "transformers":
        expected_text_encoder(model, config).check(tensors, where)
        return
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {_present_name(name, shapes): entry for name, entry in tensors.items()}
    if missing := [name for name in shapes if name not in found]:
        raise BaseModelError(
            f"{where} lacks {missing[0]!r} ({len(missing)} of the {len(shapes)} tensors of a {part.class_name}); upload "
            "the whole component, with the config.json that belongs to it"
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
