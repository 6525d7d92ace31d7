"""Base versions in the store: records by id, and their weight probes, computed once a content fingerprint."""

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from oral_ray.bases.catalog import BaseRecord, describe_base
from oral_ray.bases.probes import weight_probes
from oral_ray.config import ConditionConfig, fingerprint
from oral_ray.errors import BaseModelError, MissingObjectError
from oral_ray.objects import Objects, open_objects


class BaseStore:
    """Base checkpoints under `<prefix>/<id>/` of a store."""

    def __init__(self, objects: Objects, prefix: str) -> None:
        self._objects, self._prefix = objects, prefix

    def key_prefix(self, base_id: str) -> str:
        """Where a version lies."""
        return f"{self._prefix}/{base_id}/"

    def has(self, base_id: str) -> bool:
        """Whether a checkpoint has landed (complete or not)."""
        return self._objects.exists(f"{self.key_prefix(base_id)}config.json")

    def record(self, base_id: str) -> BaseRecord:
        """The record of a complete version; BaseModelError says what is missing."""
        if not self.has(base_id):
            raise BaseModelError(
                f"base {base_id!r} is not in {self._objects.uri}/{self._prefix}; import it with jobs/corpus.py or "
                "put its files there"
            )
        return describe_base(self._objects, self.key_prefix(base_id), base_id)


def stored_probes(objects: Objects, record: BaseRecord, config: ConditionConfig) -> dict[str, Tensor]:
    """The weight probes of a base, from the store when they were computed before."""
    settings = fingerprint(list(config.probe_modules), config.num_probes)
    key = f"probes/{record.fingerprint}-{settings}.safetensors"
    try:
        return load(objects.get(key))
    except (MissingObjectError, SafetensorError):  # not there, or damaged
        base = open_objects(record.uri)
        probes = weight_probes(base, "", record.spec, config.probe_modules, config.num_probes)
        found = describe_base(base, "", record.id).fingerprint  # after reading: what was read is what is kept for it
        if found != record.fingerprint:
            raise BaseModelError(
                f"base {record.id!r} at {record.uri} has fingerprint {found}, expected {record.fingerprint}; it was "
                "replaced, run the catalog again"
            ) from None
        objects.put(key, save({name: probe.contiguous() for name, probe in probes.items()}))
        return probes
