"""What a loader is shown of a folder, and the weights that it leaves in memory: the same for every kind of base.

with tempfile.TemporaryDirectory() as name:
    show(checkpoint.files, folder, Path(name), without_quantization(checkpoint.config))
    model = Class.from_pretrained(name)
keep_weights(model, str(folder))
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from oral_ray.bases.checkpoint import CONFIG
from oral_ray.errors import BaseModelError


def show(files: Iterable[str], folder: Path, view: Path, config: Mapping[str, Any] | None = None) -> None:
    """Fill an empty folder with links to the files that count, and `config` in place of the config.json among them."""
    for file in files:
        (view / file).symlink_to(os.path.realpath(folder / file))
    if config is not None:
        (view / CONFIG).unlink()
        (view / CONFIG).write_text(json.dumps(config))


def keep_weights(model: nn.Module, where: str) -> None:
    """Give a model weights in memory of its own; BaseModelError for values that are not finite."""
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        # float32 weights are the mapped file itself: who writes to it would change them
        value.data = value.data.clone()
        # the catalog reads samples of the weights only
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise BaseModelError(f"{where}: {name} holds values that are not finite; do not use this base")
