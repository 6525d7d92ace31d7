"""Small JSON objects that are created once: records (a piece of work is done, one a recipe fingerprint) and journals.

records = Records(objects)
if records.get("corpus", fp) is None:
    ...
    records.commit("corpus", fp, {"digests": [...]})

journal = Journal(objects, "releases/my-base/")
number = journal.append(entry, unless=lambda last: journal.get(last) == same)
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from oral_ray.config import canonical_json
from oral_ray.errors import MissingObjectError, StoreError
from oral_ray.objects import Objects


class Records:
    """`records/<namespace>/<fingerprint>.json` in a store."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def get(self, namespace: str, fingerprint: str) -> dict[str, Any] | None:
        """The record, or None when that work is not done."""
        return self._read(_key(namespace, fingerprint))

    def all(self, namespace: str) -> Iterator[dict[str, Any]]:
        """Every record of a namespace (`corpus`, `scores`, ...)."""
        for info in self._objects.list(_key(namespace, "").removesuffix(".json")):
            if (record := self._read(info.key)) is not None:
                yield record

    def _read(self, key: str) -> dict[str, Any] | None:
        try:
            data = self._objects.get(key)
        except MissingObjectError:
            return None
        try:
            record = json.loads(data)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise StoreError(f"record {key!r} is damaged; delete it to do the work again")
        return record

    def commit(
        self,
        namespace: str,
        fingerprint: str,
        record: dict[str, Any],
        holds: Callable[[dict[str, Any]], bool] = lambda kept: True,
    ) -> dict[str, Any]:
        """Create the record; when another worker was first, its record is returned instead.

        One that does not hold any more, since what it names is lost, is replaced by that of the work done again.
        """
        data = canonical_json(record).encode()
        if self._objects.put_if_absent(_key(namespace, fingerprint), data):
            return record
        kept = self.get(namespace, fingerprint)
        if kept is None or holds(kept):
            return kept or record
        self._objects.put(_key(namespace, fingerprint), data)
        return record


class Journal:
    """Numbered entries under a prefix, `00000001.json` and so on: appended, never changed; the highest number counts.

    The first one is `after` + 1, for entries that go on after others elsewhere.
    """

    def __init__(self, objects: Objects, prefix: str, after: int = 0) -> None:
        self._objects, self._prefix, self._after = objects, prefix, after

    def numbers(self) -> list[int]:
        """The numbers of the entries, ascending; a deleted one leaves a gap that does no harm."""
        names = [info.key.removeprefix(self._prefix) for info in self._objects.list(self._prefix)]
        return sorted(int(name.removesuffix(".json")) for name in names if re.fullmatch(r"\d{8}\.json", name))

    def key(self, number: int) -> str:
        """The key of an entry."""
        return f"{self._prefix}{number:08d}.json"

    def get(self, number: int) -> bytes:
        """An entry as it was written."""
        return self._objects.get(self.key(number))

    def append(self, value: Any, unless: Callable[[int], bool]) -> int:
        """Add an entry and return its number; that of the last one when `unless(last)`. Writers at once take turns."""
        return self.amend(lambda last: None if last and unless(last) else value)

    def amend(self, change: Callable[[int], Any]) -> int:
        """Add what `change` makes of the last entry (0: none) and return its number; that of the last one for None.

        When another writer was faster, `change` is asked again about its entry, so that nothing of either is lost.
        """
        taken = 0
        while True:
            last = max([self._after, *self.numbers()])
            if last < taken:
                raise StoreError(
                    f"{self.key(taken)} in {self._objects.uri} is there, and its listing leaves it out; try again"
                )
            value = change(last)
            if value is None:
                return last
            if self._objects.put_if_absent(self.key(last + 1), canonical_json(value).encode()):
                return last + 1
            taken = last + 1


def _key(namespace: str, fingerprint: str) -> str:
    return f"records/{namespace}/{fingerprint}.json"
