"""Which base checkpoints lie under a prefix, and whether each is complete.

A checkpoint `<prefix>/<id>/` is complete when config.json is there, every weight file is exactly as long as its header
says, every tensor of the index is in a shard, and nothing has changed for a quiet period; `READY` beside it waives the
quiet period. The listing is the truth. What is not complete is reported with a reason and never half-used.
"""

import re
import time

from pydantic import BaseModel, ConfigDict

from oral_ray.bases.fingerprint import content_fingerprint
from oral_ray.bases.spec import BaseModelSpec, read_spec, read_tensors
from oral_ray.config import IDENTIFIER
from oral_ray.errors import BaseModelError, OralError
from oral_ray.objects import Objects

READY = "READY"


class BaseRecord(BaseModel):
    """One version of a base model: where it lies, its geometry, the fingerprint of its content."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    uri: str
    spec: BaseModelSpec
    fingerprint: str


class SkippedBase(BaseModel):
    """A checkpoint that is not used, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    reason: str


def describe_base(objects: Objects, prefix: str, base_id: str) -> BaseRecord:
    """The record of a complete checkpoint under a prefix (`""` or `some/folder/`); BaseModelError if it is not."""
    spec = read_spec(objects, prefix)
    if not read_tensors(objects, prefix):
        raise BaseModelError(f"{objects.uri}/{prefix} has no safetensors weights (pickle files are never read)")
    uri = f"{objects.uri}/{prefix}".rstrip("/")
    return BaseRecord(id=base_id, uri=uri, spec=spec, fingerprint=content_fingerprint(objects, prefix))


def discover(objects: Objects, prefix: str, quiet_period_s: float) -> tuple[list[BaseRecord], list[SkippedBase]]:
    """All complete checkpoints under a prefix, and all others with a reason, both sorted by id."""
    newest: dict[str, float] = {}
    ready: set[str] = set()
    for info in objects.list(f"{prefix}/"):
        base_id, slash, name = info.key.removeprefix(f"{prefix}/").partition("/")
        if not slash:
            continue  # a file beside the checkpoints
        newest[base_id] = max(newest.get(base_id, 0.0), info.modified_s)
        if name == READY:
            ready.add(base_id)
    records, skipped = [], []
    for base_id, modified_s in sorted(newest.items()):
        try:
            if not re.fullmatch(IDENTIFIER, base_id):
                raise BaseModelError(f"{base_id!r} is no valid id; use letters, digits, '.', '_' and '-'")
            age_s = time.time() - modified_s
            if base_id not in ready and age_s < quiet_period_s:
                raise BaseModelError(f"changed {age_s:.0f} s ago, quiet period is {quiet_period_s:.0f} s; wait")
            records.append(describe_base(objects, f"{prefix}/{base_id}/", base_id))
        except OralError as error:
            skipped.append(SkippedBase(id=base_id, reason=str(error)))
    return records, skipped
