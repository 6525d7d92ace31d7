"""An adapter folder written tensor by tensor, in any order, never held in memory: what `AdapterArtifact.files` writes.

The layout knows names and shapes, so the safetensors header is written first and every tensor goes to its place. The
bytes and the digest are those of the same adapter in memory.

    with AdapterWriter(folder, layout, provenance) as writer:
        writer.write(slot, rows)          # every slot once
    writer.digest
"""

import json
import math
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from oral_ray.adapters.artifact import CONFIG, PROVENANCE, WEIGHTS, Provenance, peft_config
from oral_ray.adapters.layout import AdapterLayout, AdapterSlot
from oral_ray.adapters.streamed import TensorPlace, stream_digest
from oral_ray.config import canonical_json
from oral_ray.errors import ArtifactError

FLOAT_BYTES = 4


class AdapterWriter:
    """Writes one adapter into a folder; `digest` is there after the `with` block, as is adapter_config.json."""

    def __init__(self, folder: Path, layout: AdapterLayout, provenance: Provenance) -> None:
        self._folder, self._layout, self._provenance = folder, layout, provenance
        self._missing = {slot.key for slot in layout.slots}
        self._shapes = {slot.key: slot.shape(layout.lora.r) for slot in sorted(layout.slots, key=lambda s: s.key)}
        self._header, self._starts = _header(self._shapes)
        self.digest = ""

    def __enter__(self) -> "AdapterWriter":
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / CONFIG).unlink(missing_ok=True)  # an adapter that is being replaced is no adapter meanwhile
        self._file = (self._folder / WEIGHTS).open("w+b")
        self._file.write(self._header)
        self._file.truncate(len(self._header) + sum(FLOAT_BYTES * math.prod(shape) for shape in self._shapes.values()))
        return self

    def write(self, slot: AdapterSlot, rows: Tensor) -> None:
        """One slot's values as rank rows [r, width]; ArtifactError for values that are not finite."""
        if not bool(torch.isfinite(rows).all()):
            raise ArtifactError(f"{slot.key} holds values that are not finite; generate the adapter with another seed")
        values = (rows if slot.factor == "A" else rows.T).to("cpu", torch.float32).contiguous()
        if tuple(values.shape) != self._shapes[slot.key]:
            raise ArtifactError(f"{slot.key} is {tuple(values.shape)}, its layout needs {self._shapes[slot.key]}")
        self._file.seek(self._starts[slot.key])
        self._file.write(values.numpy().data)
        self._missing.discard(slot.key)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                return
            if self._missing:
                raise ArtifactError(f"{len(self._missing)} tensors were not written, first {min(self._missing)!r}")
            self._file.flush()
            config = canonical_json(peft_config(self._layout, self._provenance.base_id))
            self.digest = self._read_digest(config)
            (self._folder / PROVENANCE).write_text(canonical_json(self._provenance), encoding="utf-8")
            (self._folder / CONFIG).write_text(config, encoding="utf-8")
        finally:
            self._file.close()

    def _read_digest(self, config: str) -> str:
        """The file is read once more: the digest is over tensors by name, and they come by layer."""
        places = (
            TensorPlace(name, "float32", shape, self._starts[name], FLOAT_BYTES * math.prod(shape))
            for name, shape in self._shapes.items()
        )
        return stream_digest(config, places, self._file)


def _header(shapes: dict[str, tuple[int, int]]) -> tuple[bytes, dict[str, int]]:
    """The header of a safetensors file, padded to 8 bytes as safetensors pads it, and where each tensor starts."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, shape in shapes.items():
        end = place + FLOAT_BYTES * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    starts = {name: len(header) + entry["data_offsets"][0] for name, entry in entries.items() if name in shapes}  # type: ignore[index]
    return header, starts
