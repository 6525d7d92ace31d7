"""The latest releases of every base at the price of one listing: only what is newer than the last time is read.

What was read is kept in `cache/heads.json`: a cache, which may be deleted and is made anew.
"""

import json
import logging

from pydantic import Field, ValidationError

from oral_ray.config import Record, canonical_json
from oral_ray.errors import MissingObjectError, ReleaseError, StoreError
from oral_ray.objects import Objects
from oral_ray.store.releases import Release, ReleaseKey, parse_key, read_release

logger = logging.getLogger(__name__)
_CACHE = "cache/heads.json"


class Head(Record):
    """A latest release with its number."""

    number: int
    release: Release


class _Read(Record):
    """A release as it was read; the tag is another one when its object was replaced."""

    tag: str
    release: Release


class _Known(Record):
    """What was read, by key of the store: the latest release of every name, and those that say their name themselves."""

    releases: dict[str, _Read] = Field(default={})


def latest_releases(objects: Objects) -> dict[str, dict[str, Head]]:
    """Latest releases by base id and name; one that is damaged is reported in the log and left out."""
    known = _read(objects)
    newest: dict[tuple[str, str | None, int], tuple[ReleaseKey, str]] = {}
    for info in objects.list("releases/"):
        if key := parse_key(info.key):
            place = (key.base, key.name, 0 if key.name else key.number)  # without a name, each may be of another one
            newest[place] = max(newest.get(place, (key, info.tag)), (key, info.tag), key=lambda found: found[0].number)
    kept: dict[str, _Read] = {}
    heads: dict[str, dict[str, Head]] = {}
    for key, tag in sorted(newest.values(), key=lambda found: found[0].number):
        of_base = heads.setdefault(key.base, {})
        try:
            read = known.releases.get(key.path)
            release = read.release if read and read.tag == tag else read_release(objects, key)
        except ReleaseError as error:
            logger.error("%s", error)
            of_base.pop(key.name or "", None)
            continue
        kept[key.path] = _Read(tag=tag, release=release)
        of_base[key.name or release.name] = Head(number=key.number, release=release)
    if kept != known.releases:
        _keep(objects, _Known(releases=kept))
    return {base_id: dict(sorted(heads[base_id].items())) for base_id in sorted(heads) if heads[base_id]}


def latest_of(objects: Objects, name: str) -> dict[str, Head]:
    """The latest releases of one name, by base id."""
    return {base_id: heads[name] for base_id, heads in latest_releases(objects).items() if name in heads}


def _keep(objects: Objects, known: _Known) -> None:
    try:
        objects.put(_CACHE, canonical_json(known).encode())
    except StoreError as error:  # who may only read does without
        logger.warning("the latest releases cannot be kept: %s", error)


def _read(objects: Objects) -> _Known:
    try:
        return _Known.model_validate(json.loads(objects.get(_CACHE)))
    except MissingObjectError:
        return _Known()
    except (ValueError, ValidationError) as error:
        logger.warning("%s/%s is damaged and made anew: %s", objects.uri, _CACHE, str(error).partition("\n")[0])
        return _Known()
