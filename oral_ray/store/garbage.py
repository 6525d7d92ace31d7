"""Garbage: what nothing in the store names any more, and what writers that died have left.

Marking is by name and cautious: a digest or a folder that stands anywhere in a record, a release, an alias, a job or a
manifest is kept. Only whole units are swept (an adapter, a published folder, an attempt at a shard), only those whose
newest object is older than a grace period, and of an adapter the marker first, so that no reader sees a partial one.

All releases are kept, unless there is a limit: then the newest ones of a base, and every one that an alias has meant.

    units = plan_collection(objects, grace_s=86400)
    collect(objects, units)
"""

import json
import re
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

from oral_ray.adapters.artifact import CONFIG
from oral_ray.errors import StoreError
from oral_ray.objects import ObjectInfo, Objects, in_parallel
from oral_ray.store.releases import ReleaseStore

GRACE_S = 86_400.0
_ROOTS = ("records/", "releases/", "aliases/", "current/", "jobs/", "runs/")
_NAME = re.compile(rb"[0-9a-f]{64}")


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


def plan_collection(
    objects: Objects, grace_s: float = GRACE_S, published: str = "published", keep_releases: int | None = None
) -> list[Unit]:
    """What may be deleted, by name; nothing is. StoreError where a release or a manifest cannot be read."""
    before = time.time() - grace_s
    # Candidates are listed before anything is marked: what is named while this runs is seen by the marking.
    adapters = _units(objects, "adapters/", 2)
    views = _units(objects, f"{published}/", 3)
    shards, generators, probes = (_units(objects, f"{kind}/", depth) for kind, depth in
                                  (("shards", 3), ("generators", 3), ("probe", 2)))  # fmt: skip
    leftovers = list(objects.leftovers())
    superseded = {} if keep_releases is None else _superseded(objects, keep_releases, before)
    named = _named(objects, superseded)
    released = _released(objects, superseded)
    found = [Unit(name, "newer releases are kept, and no alias has meant it", (info,))
             for name, info in superseded.items()]  # fmt: skip
    found += [Unit(name, "no record, release or job names it", infos) for name, infos in adapters.items()
             if name.split("/")[1].encode() not in named]  # fmt: skip
    found += [Unit(name, "no release names it", infos) for name, infos in views.items()
              if tuple(name.removeprefix(f"{published}/").split("/")[:2]) not in released]  # fmt: skip
    found += _unlisted(objects, shards, lambda manifest: {manifest["attempt"]})
    found += _unlisted(objects, generators, lambda manifest: {str(h)[:16] for h in manifest["files"].values()})
    found += [Unit(name, "left by a probe", infos) for name, infos in probes.items()]
    found += [Unit(left.key, "an unfinished write", (left,), leftover=True) for left in leftovers]
    return sorted(unit for unit in found if max(info.modified_s for info in unit.infos) < before)


def collect(objects: Objects, units: Iterable[Unit]) -> int:
    """Delete what was planned and return the number of objects; releases before what they name."""
    parts: tuple[list[Unit], list[Unit]] = ([], [])
    for unit in units:
        parts[not unit.name.startswith("releases/")].append(unit)
    return sum(sum(in_parallel(objects, lambda unit: _delete(objects, unit), part)) for part in parts)


def _delete(objects: Objects, unit: Unit) -> int:
    for info in sorted(unit.infos, key=lambda info: not info.key.endswith(f"/{CONFIG}")):
        objects.discard(info) if unit.leftover else objects.delete(info.key)
    return len(unit.infos)


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
    """Releases by key that are neither among the newest `keep` of their base nor meant by an alias, now or ever."""
    releases = ReleaseStore(objects)
    found = {}
    for base_id in releases.bases():
        kept = {number for name in releases.aliases(base_id) for number in releases.history(base_id, name)}
        numbers = releases.sequence(base_id)
        old = {f"{number:08d}.json" for number in numbers[:-keep] if number not in kept}
        found |= {
            info.key: info
            for info in objects.list(f"releases/{base_id}/")
            if info.key.rpartition("/")[2] in old and info.modified_s < before
        }
    return found


def _named(objects: Objects, superseded: Collection[str]) -> set[bytes]:
    """Every digest that stands in a root, whatever the root means by it."""
    keys = [info.key for prefix in _ROOTS for info in objects.list(prefix) if info.key not in superseded]
    return {name for data in in_parallel(objects, objects.get, keys) for name in _NAME.findall(data)}


def _released(objects: Objects, superseded: Collection[str]) -> set[tuple[str, ...]]:
    keys = [info.key for info in objects.list("releases/") if re.fullmatch(r"releases/[^/]+/\d{8}\.json", info.key)]
    keys = [key for key in keys if key not in superseded]
    found: set[tuple[str, ...]] = set()
    for key, data in zip(keys, in_parallel(objects, objects.get, keys), strict=True):
        try:
            release = json.loads(data)
            found |= {(release["base"], adapter["adapter_id"]) for adapter in release["adapters"]}
        except (ValueError, KeyError, TypeError):
            raise StoreError(
                f"{key} in {objects.uri} is damaged: what it names is not known; repair it first"
            ) from None
    return found


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
