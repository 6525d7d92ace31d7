"""The latest release of every base at the price of one listing: only what is newer than the last time is read.

What was read is kept in `cache/releases.json`: a cache, which may be deleted and is made anew.
"""

import json
import logging
import re

from pydantic import BaseModel, ConfigDict, ValidationError

from oral_ray.config import canonical_json
from oral_ray.errors import MissingObjectError, ReleaseError, StoreError
from oral_ray.objects import Objects
from oral_ray.store.releases import Release, ReleaseStore

logger = logging.getLogger(__name__)
_CACHE = "cache/releases.json"
_KEY = re.compile(r"releases/([^/]+)/(\d{8})\.json")


class Head(BaseModel):
    """A base's latest release with its number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    release: Release


class _Heads(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    heads: dict[str, Head] = {}


def latest_releases(objects: Objects) -> dict[str, Head]:
    """Latest releases by base id; one that is damaged is reported in the log and left out."""
    known, releases = _read(objects), ReleaseStore(objects)
    numbers: dict[str, int] = {}
    for info in objects.list("releases/"):
        if found := _KEY.fullmatch(info.key):
            numbers[found[1]] = max(numbers.get(found[1], 0), int(found[2]))
    heads: dict[str, Head] = {}
    for base_id, number in numbers.items():
        kept = known.heads.get(base_id)
        try:
            heads[base_id] = (
                kept if kept and kept.number == number else Head(number=number, release=releases.get(base_id, number))
            )
        except ReleaseError as error:
            logger.error("%s", error)
    if heads != known.heads:
        try:
            objects.put(_CACHE, canonical_json(_Heads(heads=heads)).encode())
        except StoreError as error:  # who may only read does without
            logger.warning("the latest releases cannot be kept: %s", error)
    return heads


def _read(objects: Objects) -> _Heads:
    try:
        return _Heads.model_validate(json.loads(objects.get(_CACHE)))
    except MissingObjectError:
        return _Heads()
    except (ValueError, ValidationError) as error:
        logger.warning("%s/%s is damaged and made anew: %s", objects.uri, _CACHE, str(error).partition("\n")[0])
        return _Heads()
