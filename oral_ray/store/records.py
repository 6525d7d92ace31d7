"""Records: small JSON objects that say a piece of work is done, one a recipe fingerprint, created once.

records = Records(objects)
if records.get("corpus", fp) is None:
    ...
    records.commit("corpus", fp, {"digests": [...]})
"""

import json
from typing import Any

from oral_ray.config import canonical_json
from oral_ray.errors import MissingObjectError, StoreError
from oral_ray.objects import Objects


class Records:
    """`records/<kind>/<fingerprint>.json` in a store."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def get(self, kind: str, fingerprint: str) -> dict[str, Any] | None:
        """The record, or None when that work is not done."""
        try:
            data = self._objects.get(_key(kind, fingerprint))
        except MissingObjectError:
            return None
        try:
            record = json.loads(data)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise StoreError(f"record {_key(kind, fingerprint)!r} is damaged; delete it to do the work again")
        return record

    def commit(self, kind: str, fingerprint: str, record: dict[str, Any]) -> dict[str, Any]:
        """Create the record; when another worker was first, its record is returned instead."""
        if self._objects.put_if_absent(_key(kind, fingerprint), canonical_json(record).encode()):
            return record
        return self.get(kind, fingerprint) or record


def _key(kind: str, fingerprint: str) -> str:
    return f"records/{kind}/{fingerprint}.json"
