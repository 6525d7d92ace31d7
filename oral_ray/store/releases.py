"""Releases: which adapters are current for a base under a configuration. Append-only, the highest number is the latest.

`releases/<base>/<name>/<seq>.json`, where `name` is that of the configuration: several configurations over one store keep
releases of their own for the same base. Files directly below `releases/<base>/` are of the name that they carry, and a
name's numbers go on after them. A release names its adapters relative to the store, so that it can be copied or moved.

    releases = ReleaseStore(objects)
    for name in releases.names("my-base"):
        print(releases.latest("my-base", name))
"""

import json
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pydantic import ValidationError, field_validator, model_validator

from oral_ray.config import Record
from oral_ray.errors import ReleaseError
from oral_ray.objects import Objects
from oral_ray.store.records import Journal

logger = logging.getLogger(__name__)
_KEY = re.compile(r"releases/([^/]+)/(?:([^/]+)/)?(\d{8})\.json")


class ReleasedAdapter(Record):
    """One published adapter: which arm won the gate, with what validation score, and where it is.

    `uri` is relative to the store: an absolute one, as older releases have it, is cut to `<prefix>/<base>/<adapter_id>`.
    `seed` is that of its sample or training, `code_version` the code that decided, `signer` whose signature lies beside it.
    """

    task: str
    arm: str
    adapter_id: str
    digest: str
    uri: str
    score: float
    scores: dict[str, float]
    seed: int = 0
    code_version: str = ""
    signer: str = ""

    @field_validator("uri")
    @classmethod
    def _relative(cls, uri: str, info: Any) -> str:
        is_published = "://" in uri and uri.endswith(f"/{info.data.get('adapter_id')}")
        return "/".join(uri.split("/")[-3:]) if is_published else uri

    def uri_in(self, store_uri: str) -> str:
        """Where it lies when the store is at this uri."""
        return self.uri if "://" in self.uri else f"{store_uri}/{self.uri}"


class Release(Record):
    """All adapters published for one base version by one configuration, with their lineage: whatever else went into them.

    `name` is the configuration's, `served_name` what the adapters call their base (empty in older releases). `generator` is
    a recipe, `generator_digest` is over its files, `corpus` names the shards that it was trained on.
    """

    base: str
    base_fingerprint: str
    generator: str
    name: str
    served_name: str = ""
    generator_digest: str = ""
    corpus: str = ""
    adapters: tuple[ReleasedAdapter, ...]

    @model_validator(mode="before")
    @classmethod
    def _read_older(cls, data: Any) -> Any:
        """Older releases have the configuration's name as `recipe`."""
        if isinstance(data, dict) and "recipe" in data and "name" not in data:
            return {key: value for key, value in data.items() if key != "recipe"} | {"name": data["recipe"]}
        return data

    def shown(self, store_uri: str) -> dict[str, Any]:
        """The release as JSON for a reader, with absolute uris."""
        said = self.model_dump(mode="json")
        for adapter, row in zip(self.adapters, said["adapters"], strict=True):
            row["uri"] = adapter.uri_in(store_uri)
        return said


class ReleaseKey(NamedTuple):
    """Where a release lies; `name` is None where its content has to say it."""

    base: str
    name: str | None
    number: int

    @property
    def path(self) -> str:
        """The key in the store."""
        return f"releases/{self.base}/{f'{self.name}/' if self.name else ''}{self.number:08d}.json"


def parse_key(key: str) -> ReleaseKey | None:
    """The release that a key of the store names; None for every other object."""
    found = _KEY.fullmatch(key)
    return ReleaseKey(found[1], found[2], int(found[3])) if found else None


def read_release(objects: Objects, key: ReleaseKey) -> Release:
    """One release; ReleaseError where it is damaged."""
    try:
        return Release.model_validate(json.loads(objects.get(key.path)))
    except (ValueError, ValidationError, RecursionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ReleaseError(
            f"release {key.number} of base {key.base!r} is damaged; delete {key.path}, the next run of jobs/regenerate.py "
            f"releases again: {reason}"
        ) from None


class ReleaseStore:
    """Releases in an object store, by base and by name of a configuration."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def bases(self) -> list[str]:
        """The ids of all bases with a release."""
        return sorted({key.base for info in self._objects.list("releases/") if (key := parse_key(info.key))})

    def names(self, base_id: str) -> list[str]:
        """The names of the configurations that have a release of a base."""
        keys = self._keys(base_id)
        older = {release.name for _, release in self._older(keys)}
        return sorted(older | {key.name for key in keys if key.name})

    def sequence(self, base_id: str, name: str) -> list[int]:
        """The numbers of a base's releases under a name, ascending."""
        return sorted(self.places(base_id, name))

    def get(self, base_id: str, name: str, seq: int) -> Release:
        """One release; ReleaseError where there is none."""
        places = self.places(base_id, name)
        if seq not in places:
            raise ReleaseError(
                f"base {base_id!r} has no release {seq} of {name!r}; there are {sorted(places) or 'none'}"
            )
        return read_release(self._objects, places[seq])

    def latest(self, base_id: str, name: str) -> Release | None:
        """The release with the highest number, or None."""
        places = self.places(base_id, name)
        return read_release(self._objects, places[max(places)]) if places else None

    def digest_of(self, published: str) -> str:
        """The digest of a published adapter by `BASE/ADAPTER_ID`, under whatever name it was released.

        ReleaseError lists what the base has.
        """
        base_id, _, adapter_id = published.partition("/")
        known = {
            adapter.adapter_id: adapter.digest for _, r in self._readable(self._keys(base_id)) for adapter in r.adapters
        }
        if adapter_id not in known:
            raise ReleaseError(f"no published adapter {published!r}; base {base_id!r} has {', '.join(known) or 'none'}")
        return known[adapter_id]

    def served_as(self, served_name: str) -> list[str]:
        """The ids of the bases whose latest release says that they are served under a name."""
        return [
            base_id
            for base_id in self.bases()
            if any(r and r.served_name == served_name for r in (self.latest(base_id, n) for n in self.names(base_id)))
        ]

    def alias(self, base_id: str, name: str, alias: str) -> int | None:
        """The number of the release that an alias means; `latest` is always the newest. None where there is none."""
        if alias == "latest":
            return max(self.sequence(base_id, name), default=None)
        return next(iter(reversed(self.history(base_id, name, alias))), None)

    def aliases(self, base_id: str, name: str) -> list[str]:
        """The aliases of a base's releases under a name, but for `latest`."""
        parts = [info.key.split("/")[2:] for info in self._objects.list(f"aliases/{base_id}/")]
        found = {alias for alias, *rest in parts if len(rest) == 1} | {
            p[1] for p in parts if len(p) == 3 and p[0] == name
        }
        return sorted(alias for alias in found if self.history(base_id, name, alias))

    def history(self, base_id: str, name: str, alias: str) -> list[int]:
        """Every release of a name that an alias has meant, oldest first."""
        older = {key.number for key, release in self._older(self._keys(base_id)) if release.name == name}
        meant = [
            number for number in self._meant(Journal(self._objects, f"aliases/{base_id}/{alias}/")) if number in older
        ]
        return meant + self._meant(self._aliases(base_id, name, alias))

    def set_alias(self, base_id: str, name: str, alias: str, seq: int) -> None:
        """Let an alias mean a release, by an appended record; ReleaseError where there is no such release."""
        known = self.sequence(base_id, name)
        if seq not in known:
            raise ReleaseError(f"base {base_id!r} has no release {seq} of {name!r}; there are {known or 'none'}")
        if alias == "latest":
            raise ReleaseError("alias 'latest' is always the newest release; take another name, such as prod")
        journal = self._aliases(base_id, name, alias)
        journal.amend(lambda _: None if self.alias(base_id, name, alias) == seq else {"release": seq})

    def roll_back(self, base_id: str, name: str, alias: str) -> int:
        """Let an alias mean the newest release before its own that it has meant; ReleaseError where there is none."""
        history = self.history(base_id, name, alias)
        earlier = [seq for seq in history if seq < history[-1]]
        if not earlier:
            raise ReleaseError(f"alias {alias!r} of base {base_id!r} has meant no earlier release (history: {history})")
        self.set_alias(base_id, name, alias, max(earlier))
        return max(earlier)

    def diff(self, base_id: str, name: str, old: int, new: int) -> list[str]:
        """What changed between two releases, one line per task."""
        before, after = ({a.task: a for a in self.get(base_id, name, seq).adapters} for seq in (old, new))
        lines = [f"- {task}  {before[task].adapter_id}" for task in sorted(before.keys() - after.keys())]
        lines += [f"+ {task}  {after[task].adapter_id}" for task in sorted(after.keys() - before.keys())]
        return lines + [
            f"~ {task}  {a.adapter_id} ({a.arm} {a.score:.3f}) -> {b.adapter_id} ({b.arm} {b.score:.3f})"
            for task in sorted(before.keys() & after.keys())
            if (a := before[task]).digest != (b := after[task]).digest
        ]

    def append(self, release: Release) -> int:
        """Add a release and return its number; an equal latest release is not added again."""
        return self.amend(release.base, release.name, lambda _: release)

    def amend(self, base_id: str, name: str, change: Callable[[Release | None], Release]) -> int:
        """Add what `change` makes of the latest release and return its number; an equal one is not added again.

        Two writers at once see each other's release: `change` is asked again about the one that was faster.
        """
        older = [key.number for key, release in self._older(self._keys(base_id)) if release.name == name]
        journal = Journal(self._objects, f"releases/{base_id}/{name}/", after=max(older, default=0))

        def changed(last: int) -> Release | None:
            before = self.get(base_id, name, last) if last else None
            after = change(before)
            return None if after == before else after

        return journal.amend(changed)

    def _keys(self, base_id: str) -> list[ReleaseKey]:
        found = (parse_key(info.key) for info in self._objects.list(f"releases/{base_id}/"))
        return [key for key in found if key]

    def places(self, base_id: str, name: str) -> dict[int, ReleaseKey]:
        """Where the releases of a base under a name lie, by number."""
        keys = self._keys(base_id)
        older = [key for key, release in self._older(keys) if release.name == name]
        return {key.number: key for key in (*older, *(key for key in keys if key.name == name))}

    def _older(self, keys: list[ReleaseKey]) -> Iterator[tuple[ReleaseKey, Release]]:
        """The releases that lie directly below their base."""
        return self._readable([key for key in keys if key.name is None])

    def _readable(self, keys: list[ReleaseKey]) -> Iterator[tuple[ReleaseKey, Release]]:
        """What is damaged is reported in the log and left out: it stops nothing else."""
        for key in keys:
            try:
                yield key, read_release(self._objects, key)
            except ReleaseError as error:
                logger.error("%s", error)

    def _meant(self, journal: Journal) -> list[int]:
        try:
            return [int(json.loads(journal.get(number))["release"]) for number in journal.numbers()]
        except (ValueError, KeyError, TypeError):
            raise ReleaseError(f"an entry under {journal.key(0)[:-13]} is damaged; delete it") from None

    def _aliases(self, base_id: str, name: str, alias: str) -> Journal:
        return Journal(self._objects, f"aliases/{base_id}/{name}/{alias}/")
