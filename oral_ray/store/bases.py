"""Base versions in the store: records by id, and their weight probes, computed once a content fingerprint."""

import time
from collections.abc import Collection

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from oral_ray.bases.catalog import BaseRecord, CatalogSnapshot, SkippedBase, describe_base, discover
from oral_ray.bases.checkpoint import CONFIG
from oral_ray.bases.contents import PIPELINE_INDEX
from oral_ray.bases.probes import weight_probes
from oral_ray.config import ConditionConfig, fingerprint
from oral_ray.errors import BaseModelError, MissingObjectError
from oral_ray.objects import Objects, open_objects


class BaseStore:
    """Base checkpoints under `<prefix>/<id>/` of a store.

    What was seen of them within the last `snapshot_s` seconds is taken for what there is; by default each call lists anew.
    """

    def __init__(self, objects: Objects, prefix: str, snapshot_s: float = 0.0) -> None:
        self._objects, self._prefix, self._snapshot_s = objects, prefix, snapshot_s
        self._snapshot: CatalogSnapshot | None = None
        self._taken_s = 0.0

    def key_prefix(self, base_id: str) -> str:
        """Where a version lies."""
        return f"{self._prefix}/{base_id}/"

    def has(self, base_id: str) -> bool:
        """Whether a checkpoint has landed (complete or not)."""
        heads = [self.key_prefix(base_id) + name for name in (CONFIG, PIPELINE_INDEX)]
        landed = self._last().listed(self._objects, base_id) if self._snapshot_s else None
        if landed is None:
            return any(map(self._objects.exists, heads))
        return any(info.key in heads for info in landed.infos)

    def record(self, base_id: str) -> BaseRecord:
        """The record of a complete version; BaseModelError says what is missing."""
        if not self.has(base_id):
            raise BaseModelError(
                f"base {base_id!r} is not in {self._objects.uri}/{self._prefix}; import it with jobs/corpus.py or "
                "put its files there"
            )
        if self._snapshot_s:
            return self._last().record(self._objects, base_id)
        return describe_base(self._objects, self.key_prefix(base_id), base_id)

    def discover(
        self, quiet_period_s: float, only: Collection[str] | None = None
    ) -> tuple[list[BaseRecord], list[SkippedBase]]:
        """All complete checkpoints, and all others with a reason, both sorted by id; see `bases.catalog.discover`."""
        snapshot = self._last() if self._snapshot_s else None
        self.forget()  # the catalog may be another one from now on
        return discover(self._objects, self._prefix, quiet_period_s, only, snapshot)

    def forget(self) -> None:
        """List again from now on: something has been put there."""
        self._snapshot = None

    def _last(self) -> CatalogSnapshot:
        """The last snapshot, or one that begins now."""
        if self._snapshot is None or time.monotonic() > self._taken_s + self._snapshot_s:
            self._snapshot, self._taken_s = CatalogSnapshot.at(self._objects, self._prefix), time.monotonic()
        return self._snapshot


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
