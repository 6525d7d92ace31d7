"""Which base checkpoints lie under a prefix, and whether each is complete. The listing is the truth.

A checkpoint `<prefix>/<id>/` is complete when config.json is there, every weight file is exactly as long as its header
says, every tensor of the index is in a shard, and nothing has changed for a quiet period; `READY`, put beside it last,
waives the quiet period. What is not complete is reported with a reason and never half-used. Headers and 16 sampled
ranges of a weight file are read, never all weights.

What a listing said the last time (keys, sizes, tags) needs no second reading: the catalog keeps its answers in
`cache/bases/<prefix>.json`, so that a run reads what has changed since. That object is a cache: without it, or when two
runs write it at once, checkpoints are read again.

    records, skipped = discover(objects, "bases", quiet_period_s=60.0)
    records, skipped = discover(objects, "bases", 60.0, only=["my-base-v4"])     # what an event has hinted at
"""

import json
import logging
import re
import time
from collections.abc import Collection, Iterable, Sequence

from pydantic import BaseModel, ConfigDict, ValidationError

from oral_ray.bases.fingerprint import content_fingerprint
from oral_ray.bases.headers import Files
from oral_ray.bases.skeleton import knows
from oral_ray.bases.spec import BaseModelSpec, build_spec, read_config, read_tensors
from oral_ray.config import IDENTIFIER, canonical_json, fingerprint
from oral_ray.errors import BaseModelError, MissingObjectError, OralError, StoreError
from oral_ray.objects import FileObjects, ObjectInfo, Objects, check_key

logger = logging.getLogger(__name__)
READY = "READY"
RULES_VERSION = 1  # raise it when what is complete, or what is said about it, changes: answers are then made anew


class BaseRecord(BaseModel):
    """One version of a base model: where it lies, its geometry, the fingerprint of its content."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    uri: str
    spec: BaseModelSpec
    fingerprint: str


class SkippedBase(BaseModel):
    """A checkpoint that is not used, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    reason: str


class CatalogEntry(BaseModel):
    """What was found the last time behind a listing: a complete checkpoint, or the reason why it is none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    listing: str
    architecture: str = ""
    fingerprint: str = ""
    reason: str = ""


class Catalog(BaseModel):
    """The entries of a prefix by base id; architectures stand once each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rules: str
    architectures: dict[str, BaseModelSpec] = {}
    entries: dict[str, CatalogEntry] = {}


def describe_base(files: Files, prefix: str, base_id: str) -> BaseRecord:
    """The record of a complete checkpoint under a prefix (`""` or `some/folder/`); BaseModelError if it is not."""
    config, tensors = read_config(files, prefix), read_tensors(files, prefix)
    if not tensors:
        raise BaseModelError(f"{files.uri}/{prefix} has no safetensors weights (pickle files are never read)")
    uri = f"{files.uri}/{prefix}".rstrip("/")
    spec = build_spec(config, tensors, uri)
    return BaseRecord(id=base_id, uri=uri, spec=spec, fingerprint=content_fingerprint(files, config, tensors))


def discover(
    objects: Objects, prefix: str, quiet_period_s: float, only: Collection[str] | None = None
) -> tuple[list[BaseRecord], list[SkippedBase]]:
    """All complete checkpoints under a prefix, and all others with a reason, both sorted by id.

    With `only`, those of these ids, and nothing else is listed.
    """
    key = f"cache/bases/{prefix}.json"
    known = _read(objects, key)
    architectures, entries = dict(known.architectures), dict(known.entries)
    listed = _listed(objects, prefix, only)
    for base_id in [base_id for base_id in entries if base_id not in listed and (only is None or base_id in only)]:
        del entries[base_id]
    skipped: dict[str, str] = {}
    for base_id, infos in sorted(listed.items()):
        listing = fingerprint([[info.key, info.num_bytes, info.tag] for info in infos])
        try:
            _wait(infos, f"{prefix}/{base_id}/", quiet_period_s)
            if base_id in entries and entries[base_id].listing == listing:
                continue
            entries.pop(base_id, None)
            _check_names(objects, base_id, prefix, infos)
            record = describe_base(_Listed(objects, infos), f"{prefix}/{base_id}/", base_id)
        except BaseModelError as error:
            entries[base_id] = CatalogEntry(listing=listing, reason=str(error))
        except OralError as error:  # it may be otherwise the next time, though the listing is the same
            skipped[base_id] = str(error)
        else:
            architectures[record.spec.digest] = record.spec
            entries[base_id] = CatalogEntry(
                listing=listing, architecture=record.spec.digest, fingerprint=record.fingerprint
            )
    used = {entry.architecture for entry in entries.values()}
    catalog = Catalog(
        rules=known.rules,
        architectures={digest: spec for digest, spec in architectures.items() if digest in used},
        entries=entries,
    )
    if catalog != known:
        try:
            objects.put(key, canonical_json(catalog).encode())
        except StoreError as error:  # who may only read does without
            logger.warning("the catalog cannot be kept: %s", error)
    kept = {base_id: entries[base_id].reason for base_id in listed if base_id in entries and entries[base_id].reason}
    skipped = kept | skipped
    records = [
        BaseRecord(
            id=base_id,
            uri=f"{objects.uri}/{prefix}/{base_id}",
            spec=catalog.architectures[entries[base_id].architecture],
            fingerprint=entries[base_id].fingerprint,
        )
        for base_id in sorted(listed)
        if base_id not in skipped
    ]
    return records, [SkippedBase(id=base_id, reason=reason) for base_id, reason in sorted(skipped.items())]


def _listed(objects: Objects, prefix: str, only: Collection[str] | None) -> dict[str, list[ObjectInfo]]:
    """What lies under the prefix, by base id."""
    prefixes: Iterable[str] = [f"{prefix}/"] if only is None else [f"{prefix}/{base_id}/" for base_id in sorted(only)]
    listed: dict[str, list[ObjectInfo]] = {}
    for wanted in prefixes:
        for info in objects.list(wanted):
            listed.setdefault(info.key.removeprefix(f"{prefix}/").partition("/")[0], []).append(info)
    return listed


def _check_names(objects: Objects, base_id: str, prefix: str, infos: Sequence[ObjectInfo]) -> None:
    if not re.fullmatch(IDENTIFIER, base_id):
        raise BaseModelError(f"{base_id!r} is no valid id; use letters, digits, '.', '_' and '-'")
    if infos[0].key == f"{prefix}/{base_id}":
        raise BaseModelError(f"{base_id!r} is a file or a link, no folder; put a checkpoint's files below {prefix}/ID/")
    check = objects.path if isinstance(objects, FileObjects) else check_key  # of a folder: no link leaves it either
    for info in infos:
        try:
            check(info.key)
        except StoreError as error:
            raise BaseModelError(f"{error}; a checkpoint with such a name is not used") from None


def _wait(infos: Sequence[ObjectInfo], prefix: str, quiet_period_s: float) -> None:
    """StoreError until nothing has changed for the quiet period; a READY as young as the youngest object waives it."""
    newest = max(info.modified_s for info in infos)
    ready = any(info.key == prefix + READY and info.modified_s >= newest for info in infos)
    age_s = time.time() - newest
    if not ready and age_s < quiet_period_s:
        raise StoreError(f"changed {age_s:.0f} s ago, quiet period is {quiet_period_s:.0f} s; wait")


def _read(objects: Objects, key: str) -> Catalog:
    """The catalog as it was kept; an empty one where there is none, or one by other rules or damaged."""
    empty = Catalog(rules=fingerprint(RULES_VERSION, knows()))
    try:
        kept = Catalog.model_validate(json.loads(objects.get(key)))
    except MissingObjectError:
        return empty
    except (ValueError, ValidationError) as error:
        logger.warning("%s/%s is damaged and made anew: %s", objects.uri, key, str(error).partition("\n")[0])
        return empty
    return kept if kept.rules == empty.rules else empty


class _Listed:
    """A checkpoint's files as a listing saw them: whether there is one, and how long it is, costs no call."""

    def __init__(self, objects: Objects, infos: Iterable[ObjectInfo]) -> None:
        self.uri = objects.uri
        self.get, self.range = objects.get, objects.range
        self._sizes = {info.key: info.num_bytes for info in infos}

    def exists(self, key: str) -> bool:
        return key in self._sizes

    def num_bytes(self, key: str) -> int:
        return self._sizes[key]
