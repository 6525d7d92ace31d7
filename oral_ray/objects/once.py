"""A store as one run sees it: what is never changed once it is written is read once.

Adapters, records of finished work, shards, generators, probes and tasks lie under names that follow from what decides their
content; only what was lost or damaged is ever written again under the same name. A run that wrote such an object itself
reads it anew. What another process mends meanwhile is seen by the next run.

    objects = ReadOnce(open_objects(config.store))
"""

from collections.abc import Iterator
from pathlib import Path

from oral_ray.objects.protocol import ObjectInfo, Objects

IMMUTABLE = ("adapters/", "records/", "shards/", "generators/", "probes/", "tasks/")
_SMALL_BYTES = (
    1 << 20
)  # what is larger (the weights of an adapter of a large base) is read again when it is needed again


class ReadOnce:
    """`Objects` that remember small immutable objects, and which immutable ones exist; all else goes through."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self.uri, self.concurrency, self.cache = objects.uri, objects.concurrency, objects.cache
        self._content: dict[str, bytes] = {}
        self._existing: set[str] = set()

    def get(self, key: str) -> bytes:
        known = self._content.get(key)
        if known is not None:
            return known
        data = self._objects.get(key)
        if key.startswith(IMMUTABLE) and len(data) <= _SMALL_BYTES:
            self._content[key] = data
        return data

    def exists(self, key: str) -> bool:
        if key in self._existing or key in self._content:
            return True
        found = self._objects.exists(key)
        if found and key.startswith(IMMUTABLE):
            self._existing.add(key)
        return found

    def download(self, key: str, path: Path) -> None:
        known = self._content.get(key)
        if known is None:
            self._objects.download(key, path)
        else:
            path.write_bytes(known)

    def put(self, key: str, data: bytes) -> None:
        self._forget(key)
        self._objects.put(key, data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self._forget(key)
        return self._objects.put_if_absent(key, data)

    def upload(self, path: Path, key: str) -> None:
        self._forget(key)
        self._objects.upload(path, key)

    def delete(self, key: str) -> None:
        self._forget(key)
        self._objects.delete(key)

    def range(self, key: str, start: int, length: int) -> bytes:
        return self._objects.range(key, start, length)

    def num_bytes(self, key: str) -> int:
        return self._objects.num_bytes(key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self._objects.list(prefix)

    def link(self, key: str, valid_s: int) -> str | None:
        return self._objects.link(key, valid_s)

    def leftovers(self) -> Iterator[ObjectInfo]:
        return self._objects.leftovers()

    def discard(self, leftover: ObjectInfo) -> None:
        self._objects.discard(leftover)

    def _forget(self, key: str) -> None:
        self._content.pop(key, None)
        self._existing.discard(key)
