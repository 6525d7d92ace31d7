"""Examples with everything below the first adapted layer computed once, for many steps and many adapters above it.

A frozen base does the same to a text in every training that reads it; only the layers from the first adapted one on are
worth computing again. States are those of `TaskReader.skip_layers`, exact, and kept in a file of a folder.

    read = PrefixStates(base, reader, examples, layout.first_layer, folder, base.record.fingerprint, task.fingerprint)
    batch = read([3, 17])                        # as reader.read of these examples

Letters: T text tokens, H hidden size.
"""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from oral_ray.bases.loading import LoadedBase
from oral_ray.config import fingerprint
from oral_ray.local.packages import cache_folder
from oral_ray.modalities import Batch, TaskReader, batches
from oral_ray.tasks.task import Example


def states_folder() -> Path:
    """Where this machine keeps states; ask it on the machine that reads them."""
    return cache_folder() / "states"


class PrefixStates:
    """Reads examples by index; the whole of them is computed at the first read, in an order that only they decide."""

    def __init__(
        self, base: LoadedBase, reader: TaskReader, examples: Sequence[Example], first_layer: int, folder: Path,
        weights: Any, texts: Any,
    ) -> None:  # fmt: skip
        """`weights` and `texts` are what tells those of the model and the examples from others': they name the file."""
        self._reader, self._examples, self._first = reader, examples, first_layer
        dtype = str(next(base.model.parameters()).dtype)
        of_device = [] if base.device.type == "cpu" else [base.device.type]  # rounded otherwise there
        file = folder / f"{fingerprint('states', 1, weights, dtype, texts, first_layer, *of_device)}.safetensors"
        self._states = _kept(file, len(examples), base.device)
        if self._states is None:
            self._states = _computed(base, reader, examples, first_layer)
            _keep(file, self._states)

    def __call__(self, chosen: Sequence[int]) -> Batch:
        """The batch of `reader.read` from its states on; as it is where no layer of this model can be skipped."""
        batch = self._reader.read([self._examples[i] for i in chosen])
        if not self._states:
            return batch
        states_BTH = nn.utils.rnn.pad_sequence([self._states[i] for i in chosen], batch_first=True)
        tokens = {"inputs_embeds": states_BTH, "attention_mask": batch.tokens["attention_mask"]}
        return dataclasses.replace(batch, tokens=tokens, first_layer=self._first)


def _computed(base: LoadedBase, reader: TaskReader, examples: Sequence[Example], first_layer: int) -> list[Tensor]:
    """The states [T, H] before `first_layer` of every example; none where no layer of this model can be skipped."""
    found: dict[int, Tensor] = {}
    for chosen, batch in batches(reader, examples):
        skipped = reader.skip_layers(base.model, batch, first_layer)
        if skipped is batch:
            return []
        lengths = batch.tokens["attention_mask"].sum(1).tolist()
        for i, states_TH, length in zip(chosen, skipped.tokens["inputs_embeds"], lengths, strict=True):
            found[i] = states_TH[:length].clone()
    return [found[i] for i in range(len(examples))]


def _kept(path: Path, num: int, device: torch.device) -> list[Tensor] | None:
    """The states of a file; None where there is none that is whole."""
    try:
        found = load_file(path, str(device))
        return [found[str(i)] for i in range(num)]
    except (FileNotFoundError, SafetensorError, KeyError):
        return None


def _keep(path: Path, states: Sequence[Tensor]) -> None:
    if not states:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".states-", delete=False) as file:
        temporary = Path(file.name)
    try:
        save_file({str(i): states_TH for i, states_TH in enumerate(states)}, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
