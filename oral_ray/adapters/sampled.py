"""An adapter as a generator gives it: slot by slot. In memory it becomes an artifact, on disk it is written as it comes.

    adapter.artifact()                # all tensors in memory
    digest = adapter.write(folder)    # the same bytes and digest, one tensor in memory at a time

Rows are a slot's values [r, width], see `tokens`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from oral_ray.adapters.artifact import AdapterArtifact, Provenance, build_artifact, peft_config
from oral_ray.adapters.layout import AdapterLayout, AdapterSlot
from oral_ray.adapters.tokens import factors_of
from oral_ray.adapters.writer import AdapterWriter
from oral_ray.config import LoraSettings


@dataclass(frozen=True, slots=True)
class SampledAdapter:
    """An adapter whose tensors are not made yet. `read_rows` begins anew with every call.

    `is_streamed`: it is sampled while its rows are read, and too large to be held in memory as a whole. One that is not
    has been sampled already; what is left takes no device.
    """

    layout: AdapterLayout
    provenance: Provenance
    read_rows: Callable[[], Iterable[tuple[AdapterSlot, Tensor]]]
    is_streamed: bool = False

    @property
    def lora(self) -> LoraSettings:
        """Rank, alpha and target modules, as the artifact says them."""
        return AdapterArtifact(peft_config(self.layout, self.provenance.base), {}, self.provenance).lora

    def artifact(self) -> AdapterArtifact:
        """The adapter in memory; ArtifactError where a value is not finite."""
        return build_artifact(factors_of(self.read_rows()), self.layout, self.provenance)

    def write(self, folder: Path) -> str:
        """Write the adapter as a PEFT folder, tensor by tensor, and return its digest.

        ArtifactError where a value is not finite: then there is no adapter_config.json in the folder.
        """
        with AdapterWriter(folder, self.layout, self.provenance) as writer:
            for slot, rows in self.read_rows():
                writer.write(slot, rows)
        return writer.digest
