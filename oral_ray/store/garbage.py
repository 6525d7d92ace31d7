"""Garbage: what nothing in the store names any more, and what writers that died have left.

Marking is by name and cautious: a digest or a folder that stands anywhere in a record, a release, an alias, a job or a
manifest is kept. Only whole units are swept (an adapter, a published folder, an attempt at a shard), only those whose
newest object is older than a grace period by the store's own clock, and of an adapter the marker first, so that no reader
sees a partial one. What names things is listed twice, in two ways: a listing that leaves out what is there is an error.
Directly before anything is deleted all of it is looked at again.

All releases are kept, unless there is a limit: then the newest ones of a base and name, and every one that an alias has
meant.

    units = plan_collection(objects, grace_s=86400)
    collect(objects, units)
"""

import json
import re
import uuid
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

from oral_ray.adapters.artifact import CONFIG
from oral_ray.errors import MissingObjectError, StoreError
from oral_ray.objects import ObjectInfo, Objects, in_parallel
from oral_ray.store.releases import ReleaseStore, parse_key

GRACE_S = 86_400.0
_ROOTS = ("records/", "releases/", "aliases/", "current/", "jobs/", "runs/")
_NAMESPACES = ("corpus", "gate", "generated", "nearest", "scores", "static")  # of records, listed each by itself
_NAME = re.compile(rb"[0-9a-f]{64}")
_CLOCK_TICK_S = 2.0  # S3 dates objects to the second

# What the manifest beside an attempt names.
_LISTED: dict[str, Callable[[dict[str, Any]], set[str]]] = {
    "shards": lambda manifest: {manifest["attempt"]},
    "generators": lambda manifest: {str(digest)[:16] for digest in manifest["files"].values()},
}


class Unit(NamedTuple):
    """What is deleted together: why, its objects, and traces of unfinished writes."""

    name: str
    reason: str
    infos: tuple[ObjectInfo, ...]
    leftover: bool = False

    @property
    def num_bytes(self) -> int:
        """Size of all objects."""
        return sum(info.num_bytes for info in self.infos)

    @property
    def modified_s(self) -> float:
        """When its newest object was written."""
        return max(info.modified_s for info in self.infos)


class _Marks(NamedTuple):
    """What is kept: every digest that stands in a root, and (base, adapter id) of every release."""

    digests: set[bytes]
    released: set[tuple[str, str]]

    def keep(self, name: str, published: str) -> bool:
        """Whether a unit is an adapter or a published folder that is named."""
        parts = name.split("/")
        if parts[0] == "adapters":
            return parts[1].encode() in self.digests
        return name.startswith(f"{published}/") and (parts[-2], parts[-1]) in self.released


def plan_collection(
    objects: Objects, grace_s: float = GRACE_S, published: str = "published", keep_releases: int | None = None
) -> list[Unit]:
    """What may be deleted, by name; nothing is. StoreError where a release or a manifest cannot be read."""
    now_s = store_clock_s(objects)
    before = now_s - grace_s
    # Candidates are listed before anything is marked: what is named while this runs is seen by the marking.
    adapters = _units(objects, "adapters/", 2)
    views = _units(objects, f"{published}/", 3)
    attempts = {folder: _units(objects, f"{folder}/", 3) for folder in _LISTED}
    probes = _units(objects, "probe/", 2)
    leftovers = list(objects.leftovers())
    superseded = {} if keep_releases is None else _superseded(objects, keep_releases, before)
    marks = _mark(objects, superseded, now_s)
    found = [Unit(name, "newer releases are kept, and no alias has meant it", (info,))
             for name, info in superseded.items()]  # fmt: skip
    found += [Unit(name, "no record, release or job names it", infos) for name, infos in adapters.items()
              if not marks.keep(name, published)]  # fmt: skip
    found += [Unit(name, "no release names it", infos) for name, infos in views.items()
              if not marks.keep(name, published)]  # fmt: skip
    found += [unit for folder, units in attempts.items() for unit in _unlisted(objects, units, _LISTED[folder])]
    found += [Unit(name, "left by a probe", infos) for name, infos in probes.items()]
    found += [Unit(left.key, "an unfinished write", (left,), leftover=True) for left in leftovers]
    return sorted(unit for unit in found if unit.modified_s <= before)


def collect(objects: Objects, units: Iterable[Unit], published: str = "published") -> int:
    """Delete what was planned and return the number of objects; releases before what they name.

    What is named by now, or was written since, is left alone.
    """
    parts: tuple[list[Unit], list[Unit]] = ([], [])
    for unit in units:
        parts[not unit.name.startswith("releases/")].append(unit)
    marks = _mark(objects, {unit.name for unit in parts[0]}, store_clock_s(objects))

    def is_garbage(unit: Unit) -> bool:
        if unit.leftover:  # it is nothing of the folder it lies in, whatever names that
            return True
        folder = unit.name.partition("/")[0]
        if folder in _LISTED:
            return bool(_unlisted(objects, {unit.name: unit.infos}, _LISTED[folder]))
        return not marks.keep(unit.name, published)

    def delete(unit: Unit) -> int:
        return _delete(objects, unit) if is_garbage(unit) else 0

    return sum(sum(in_parallel(objects, delete, part)) for part in parts)


def store_clock_s(objects: Objects) -> float:
    """What time it is by the clock of the store, which dates its objects, in seconds since 1970: of one written for it."""
    key = f"probe/{uuid.uuid4().hex}"
    objects.put(key, b"")
    try:
        return next(info.modified_s for info in objects.list(key))
    except StopIteration:
        raise StoreError(f"{objects.uri} does not list {key}, which was written just before; try again") from None
    finally:
        objects.delete(key)


def _delete(objects: Objects, unit: Unit) -> int:
    if unit.leftover:
        for info in unit.infos:
            objects.discard(info)
        return len(unit.infos)
    infos = unit.infos
    if infos[0].key != unit.name:  # a listing of the folder alone shows what was left out, and what was written since
        infos = tuple(objects.list(f"{unit.name}/"))
        if any(info.modified_s > unit.modified_s for info in infos):
            return 0
    for info in sorted(infos, key=lambda info: not info.key.endswith(f"/{CONFIG}")):
        objects.delete(info.key)
    return len(infos)


def _units(objects: Objects, prefix: str, depth: int) -> dict[str, tuple[ObjectInfo, ...]]:
    """The objects below a prefix by their first `depth` names; shallower ones are nobody's garbage."""
    found: dict[str, tuple[ObjectInfo, ...]] = {}
    for info in objects.list(prefix):
        parts = info.key.split("/")
        if len(parts) > depth or prefix == "probe/":
            name = "/".join(parts[:depth])
            found[name] = (*found.get(name, ()), info)
    return found


def _superseded(objects: Objects, keep: int, before: float) -> dict[str, ObjectInfo]:
    """Releases by key that are neither among the newest `keep` of their base and name nor what an alias has ever meant."""
    releases = ReleaseStore(objects)
    infos = {info.key: info for info in objects.list("releases/")}
    found = {}
    for base_id, name in [(base, name) for base in releases.bases() for name in releases.names(base)]:
        aliases = releases.aliases(base_id, name)
        kept = {number for alias in aliases for number in releases.history(base_id, name, alias)}
        places = releases.places(base_id, name)
        old = [places[number].path for number in sorted(places)[:-keep] if number not in kept]
        found |= {key: infos[key] for key in old if key in infos and infos[key].modified_s <= before}
    return found


def _mark(objects: Objects, superseded: Collection[str], now_s: float) -> _Marks:
    """Every digest that stands in a root, whatever the root means by it, and what releases name."""
    keys = [key for root in _ROOTS for key in sorted(_keys_of(objects, root, now_s)) if key not in superseded]
    digests: set[bytes] = set()
    released: set[tuple[str, str]] = set()
    for key, data in zip(keys, in_parallel(objects, lambda key: _read(objects, key), keys), strict=True):
        digests |= set(_NAME.findall(data))
        if data and parse_key(key):
            released |= _names_of(objects, key, data)
    return _Marks(digests, released)


def _keys_of(objects: Objects, root: str, now_s: float) -> set[str]:
    """The keys below a root, from three listings: as one, folder by folder, whose pages begin elsewhere, and as one again.

    StoreError where a listing leaves out what another one has: what was there before `now_s` and still is.
    """
    first = {info.key: info.modified_s for info in objects.list(root)}
    folders = {"/".join(key.split("/")[:2]) + "/" for key in first if key.count("/") > 1}
    folders |= {f"{root}{folder}/" for folder in _NAMESPACES} if root == "records/" else set()
    by_folder = {info.key: info.modified_s for folder in sorted(folders) for info in objects.list(folder)}
    last = {info.key: info.modified_s for info in objects.list(root)}
    found = first | by_folder | last
    below = {key for key in found if key.count("/") == 1}  # in no folder
    for listed in (first.keys(), by_folder.keys() | below, last.keys()):
        for key in sorted(found.keys() - listed):
            if found[key] < now_s - _CLOCK_TICK_S and objects.exists(key):
                raise StoreError(
                    f"a listing of {objects.uri}/{root} leaves out {key}, which is there: what is named is not known, and "
                    "nothing may be deleted; mend the server, or what is between"
                )
    return set(found)


def _read(objects: Objects, key: str) -> bytes:
    """An object of a root; empty where it has been deleted since it was listed."""
    try:
        return objects.get(key)
    except MissingObjectError:
        return b""


def _names_of(objects: Objects, key: str, data: bytes) -> set[tuple[str, str]]:
    try:
        release = json.loads(data)
        return {(release["base"], adapter["adapter_id"]) for adapter in release["adapters"]}
    except (ValueError, KeyError, TypeError):
        raise StoreError(f"{key} in {objects.uri} is damaged: what it names is not known; repair it first") from None


def _unlisted(
    objects: Objects, units: dict[str, tuple[ObjectInfo, ...]], listed: Callable[[dict[str, Any]], set[str]]
) -> list[Unit]:
    """Attempts that the manifest beside them does not name, or that have none (those under way are young)."""
    found = []
    for name, infos in units.items():
        where, _, attempt = name.rpartition("/")
        key = f"{where}/manifest.json"
        if not objects.exists(key):
            found.append(Unit(name, "an attempt that was never committed", infos))
            continue
        try:
            kept = listed(json.loads(objects.get(key)))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise StoreError(
                f"{key} in {objects.uri} is damaged: what it names is not known; repair it first"
            ) from None
        if attempt not in kept:
            found.append(Unit(name, "an attempt that came second", infos))
    return found
