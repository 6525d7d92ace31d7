"""What a person does with a store, by its uri: list and pull adapters, look after it, mean releases by aliases.

store = StoreOperations("./oral-store")
store.pull("my-base/spam-0123456789ab", Path("adapter"))
store.set_alias("my-base", None, "prod", "latest")
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from oral_ray.errors import ConfigError, ReleaseError
from oral_ray.objects import open_existing
from oral_ray.store.adapters import AdapterStore
from oral_ray.store.fsck import find_faults
from oral_ray.store.garbage import Unit, collect, plan_collection
from oral_ray.store.releases import Release, ReleaseStore

logger = logging.getLogger(__name__)


class Numbered(NamedTuple):
    """A release of a base under the name of a configuration, and its number."""

    base_id: str
    name: str
    number: int
    release: Release


class StoreOperations:
    """A store that is there; StoreError where it is not.

    `published` is the prefix of the serving view. Where a method takes `name`, the name of a configuration, None means
    the only one that the base has releases of. `which` is the number of a release or an alias.
    """

    def __init__(self, uri: str, published: str = "published") -> None:
        self._objects, self._published = open_existing(uri), published
        self._adapters, self._releases = AdapterStore(self._objects), ReleaseStore(self._objects)

    @property
    def uri(self) -> str:
        """The absolute uri of the store, to which releases name their adapters relatively."""
        return self._objects.uri

    def pull(self, adapter: str, folder: Path, public_key: Path | None = None) -> Path:
        """Copy an adapter, by its digest or as BASE/ADAPTER_ID of a published one, to a folder; the digest is compared.

        With a key, a published adapter must be signed by it.
        """
        is_published = "/" in adapter
        if public_key and not is_published:
            raise ConfigError(f"only published adapters are signed; give BASE/ADAPTER_ID instead of {adapter!r}")
        digest = self._releases.digest_of(adapter) if is_published else adapter
        if public_key:
            return self._adapters.pull_published(f"{self._published}/{adapter}", digest, folder, public_key)
        return self._adapters.pull(digest, folder)

    def latest_releases(self) -> list[Numbered]:
        """The newest release of every base and name; a damaged one is logged and left out."""
        latest = []
        for base_id in self._releases.bases():
            for name in self._releases.names(base_id):
                number = self._releases.sequence(base_id, name)[-1]
                try:
                    latest.append(Numbered(base_id, name, number, self._releases.get(base_id, name, number)))
                except ReleaseError as error:
                    logger.error("%s", error)
        return latest

    def garbage(self, grace_s: float, keep_releases: int | None = None) -> list[Unit]:
        """What nothing names any more and is older than `grace_s` seconds; `keep_releases` limits those of a base."""
        if keep_releases is not None and keep_releases < 1:
            raise ConfigError(f"--keep-releases is {keep_releases}, at least the latest release must be kept")
        return plan_collection(self._objects, grace_s, self._published, keep_releases)

    def delete(self, units: Sequence[Unit]) -> int:
        """Delete garbage, and return how many objects that were."""
        return collect(self._objects, units, self._published)

    def faults(self, public_key: Path | None = None) -> Iterator[str]:
        """One sentence per fault of the store; everything is read and compared with its digest."""
        return find_faults(self._objects, self._published, public_key)

    def is_empty(self) -> bool:
        """Whether nothing at all is stored."""
        return next(iter(self._objects.list()), None) is None

    def releases(self, base_id: str, which: str, name: str | None = None) -> list[Release]:
        """The release that is meant, without a name one of every name that has it; ReleaseError where none has."""
        found = []
        for known in [name] if name else self._releases.names(base_id):
            number = int(which) if which.isdigit() else self._releases.alias(base_id, known, which)
            if number in self._releases.sequence(base_id, known):
                found.append(self._releases.get(base_id, known, number))
        if not found and name:
            self._name(base_id, name)  # says which names there are where this is none of them
        if not found:
            raise ReleaseError(self._no_release(base_id, which))
        return found

    def set_alias(
        self, base_id: str, name: str | None, alias: str, which: str, public_key: Path | None = None
    ) -> tuple[str, int]:
        """Let an alias mean a release, and return its name and number; with a key, only when all of it is signed."""
        name = self._name(base_id, name)
        number = self._number(base_id, name, which)
        if public_key:
            for adapter in self._releases.get(base_id, name, number).adapters:
                where = f"{self._published}/{base_id}/{adapter.adapter_id}"
                self._adapters.check_published(where, adapter.digest, public_key)
        self._releases.set_alias(base_id, name, alias, number)
        return name, number

    def roll_back(self, base_id: str, name: str | None, alias: str) -> tuple[str, int]:
        """Let an alias mean the release that it meant before, and return its name and number."""
        name = self._name(base_id, name)
        return name, self._releases.roll_back(base_id, name, alias)

    def diff(self, base_id: str, name: str | None, old: str, new: str) -> list[str]:
        """What changed between two releases, one line per task."""
        name = self._name(base_id, name)
        return self._releases.diff(base_id, name, *(self._number(base_id, name, which) for which in (old, new)))

    def _name(self, base_id: str, name: str | None) -> str:
        """The name that is meant: the given one, or the only one that the base has."""
        names = self._releases.names(base_id)
        if name in names or (name is None and len(names) == 1):
            return name or names[0]
        if name is None and names:
            raise ReleaseError(f"base {base_id!r} has releases of {', '.join(names)}; say which with --name")
        wanted = f" of {name!r}" if name else ""
        raise ReleaseError(f"base {base_id!r} has no release{wanted}; there are {', '.join(names) or 'none'}")

    def _number(self, base_id: str, name: str, which: str) -> int:
        number = int(which) if which.isdigit() else self._releases.alias(base_id, name, which)
        if number not in self._releases.sequence(base_id, name):
            raise ReleaseError(self._no_release(base_id, which))
        return number

    def _no_release(self, base_id: str, which: str) -> str:
        names = self._releases.names(base_id)
        known = "; ".join(f"{name}: {self._releases.sequence(base_id, name)}" for name in names)
        return f"base {base_id!r} has no release {which!r}; there are {known or 'none'}"
