"""Which base checkpoints lie under a prefix, and whether each is complete. The listing is the truth.

A checkpoint `<prefix>/<id>/` is complete when config.json is there, every weight file is exactly as long as its header
says, every shard of the index is there, its tensors are those of its class (`expected`), and nothing has changed for a
quiet period; `READY`, put beside it last, waives the quiet period. What is not complete is reported with a reason and
never half-used; whatever happens while one checkpoint is looked at is said of that one, and the others are looked at.
Headers and 16 sampled ranges of a weight file are read, never all weights.

What a listing said the last time (keys, sizes, tags) needs no second reading: the catalog keeps its answers in
`cache/bases/<prefix>.json`, so that a run reads what has changed since. That object is a cache: without it, or when two
runs write it at once, checkpoints are read again.

    records, skipped = discover(objects, "bases", quiet_period_s=60.0)
    records, skipped = discover(objects, "bases", 60.0, only=["my-base-v4"])     # what an event has hinted at
"""

import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator, Field

from oral_ray.bases.building import knows
from oral_ray.bases.checkpoint import check_tokenizer, read_checkpoint
from oral_ray.bases.components import check_components
from oral_ray.bases.contents import POINTER, why_no_checkpoint
from oral_ray.bases.expected import expected_model
from oral_ray.bases.fingerprint import content_fingerprint
from oral_ray.bases.headers import Files, TensorEntry
from oral_ray.bases.landed import Landed, check_files, check_pointer, list_landed, unquiet
from oral_ray.bases.pipeline import is_pipeline, pipeline_fingerprint, read_pipeline
from oral_ray.bases.skeleton import build_skeleton
from oral_ray.bases.spec import BaseModelSpec, build_spec
from oral_ray.bases.storage import check_plain
from oral_ray.config import Record, canonical_json, fingerprint
from oral_ray.errors import BaseModelError, ConfigError, MissingObjectError, OralError, StoreError, printable
from oral_ray.objects import ObjectInfo, Objects

logger = logging.getLogger(__name__)
SMALL_BYTES = 1024  # what git leaves in place of a large file is smaller
RULES_VERSION = 4  # raise it when what is complete, or what is said about it, changes: answers are then made anew


class BaseRecord(Record):
    """One version of a base model: where it lies, its geometry, the fingerprint of its content."""

    id: str
    uri: str
    spec: BaseModelSpec
    fingerprint: str


class SkippedBase(Record):
    """A checkpoint that is not used, and why; both are printable, whatever the folder is called or holds."""

    id: Annotated[str, BeforeValidator(printable)]
    reason: Annotated[str, BeforeValidator(printable)]


class CatalogEntry(Record):
    """What was found the last time behind a listing: a complete checkpoint, or the reason why it is none."""

    listing: str
    architecture: str = ""
    fingerprint: str = ""
    reason: str = ""


class Catalog(Record):
    """The entries of a prefix by base id; architectures stand once each."""

    rules: str
    architectures: dict[str, BaseModelSpec] = Field(default={})
    entries: dict[str, CatalogEntry] = Field(default={})

    def record(self, store_uri: str, prefix: str, base_id: str) -> BaseRecord:
        """The record of an entry that is a complete checkpoint."""
        entry = self.entries[base_id]
        return BaseRecord(
            id=base_id,
            uri=f"{store_uri}/{prefix}/{base_id}",
            spec=self.architectures[entry.architecture],
            fingerprint=entry.fingerprint,
        )


def describe_base(files: Files, prefix: str, base_id: str) -> BaseRecord:
    """The record of a complete checkpoint under a prefix (`""` or `some/folder/`); BaseModelError if it is not."""
    uri = f"{files.uri}/{prefix}".rstrip("/")
    try:
        return _record(files, prefix, base_id, uri)
    except BaseModelError as error:
        raise BaseModelError(_what_is_there(files, prefix) or str(error)) from error.__cause__
    except ConfigError as error:
        raise BaseModelError(f"{uri}/config.json: {error}; write it without") from None
    except RecursionError:
        raise BaseModelError(f"{uri}/config.json is nested too deeply to be read; is it a model's?") from None


def _record(files: Files, prefix: str, base_id: str, uri: str) -> BaseRecord:
    if is_pipeline(files, prefix):
        return _pipeline_record(files, prefix, base_id, uri)
    checkpoint = read_checkpoint(files, prefix)
    tensors: Mapping[str, TensorEntry] = checkpoint.tensors
    _check_text(uri, json.dumps(checkpoint.config, ensure_ascii=False), *tensors)
    check_plain(checkpoint.config, tensors, uri)
    expected = expected_model(checkpoint.config, build_skeleton(checkpoint.config, uri).kind, tensors, uri)
    if expected is not None:
        expected.check(tensors, uri)
        tensors = expected.loaded(tensors)
        check_tokenizer(checkpoint.files, uri)
    spec = build_spec(checkpoint.config, tensors, uri)
    return BaseRecord(id=base_id, uri=uri, spec=spec, fingerprint=content_fingerprint(files, prefix, checkpoint))


def _pipeline_record(files: Files, prefix: str, base_id: str, uri: str) -> BaseRecord:
    """The record of a diffusers pipeline: the geometry of its denoiser, the content of all that is loaded."""
    folder = read_pipeline(files, prefix)
    for part in folder.components:
        _check_text(uri, json.dumps(part.checkpoint.config, ensure_ascii=False), *part.checkpoint.tensors)
    check_components(folder, uri)
    denoiser = folder.denoiser
    spec = build_spec(denoiser.checkpoint.config, denoiser.checkpoint.tensors, f"{uri}/{denoiser.name}")
    return BaseRecord(id=base_id, uri=uri, spec=spec, fingerprint=pipeline_fingerprint(files, prefix, folder))


def _check_text(uri: str, *texts: str) -> None:
    """BaseModelError for text that no UTF-8 holds; JSON can spell it, and nothing could ever be written about it."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            found = ascii(text[error.start : error.end])
            raise BaseModelError(
                f"{uri} has {found} in config.json or in the name of a tensor: half a character, a lone surrogate; write "
                "the whole one"
            ) from None


def _what_is_there(files: Files, prefix: str) -> str:
    """What stands in place of a checkpoint, where that is plain from the names, or from how small files begin."""
    where = f"{files.uri}/{prefix}".rstrip("/")
    try:
        names = {info.key.removeprefix(prefix): info for info in files.list(prefix)}
        if reason := why_no_checkpoint(names):
            return f"{where} {reason}"
        for name, info in names.items():
            if "/" not in name and info.num_bytes < SMALL_BYTES:
                check_pointer(f"{where}/{name}", files.range(info.key, 0, len(POINTER)))
    except BaseModelError as error:
        return str(error)
    except StoreError:
        logger.debug("%s cannot be listed", where)
    return ""


@dataclass(frozen=True)
class CatalogSnapshot:
    """What was seen of a prefix a moment ago: the catalog as it was kept, and listings by base id."""

    prefix: str
    catalog: Catalog
    landed: dict[str, Landed]

    @classmethod
    def at(cls, objects: Objects, prefix: str) -> "CatalogSnapshot":
        """One that has read the catalog and listed nothing yet."""
        return cls(prefix, _read(objects, _catalog_key(prefix)), {})

    def listed(self, objects: Objects, base_id: str) -> Landed | None:
        """What lies below an id, listed once; None where nothing does, or where it is looked at as no checkpoint."""
        if base_id not in self.landed:
            self.landed.update(list_landed(objects, self.prefix, [base_id]))
        landed = self.landed.get(base_id)
        return None if landed is None or landed.reason else landed

    def record(self, objects: Objects, base_id: str) -> BaseRecord:
        """The record of a complete checkpoint, of which nothing is read where the catalog knows the listing.

        BaseModelError where it is not complete; the quiet period does not count.
        """
        landed, where = self.listed(objects, base_id), f"{self.prefix}/{base_id}/"
        if landed is None:
            return describe_base(objects, where, base_id)
        entry = self.catalog.entries.get(base_id)
        if entry is not None and entry.architecture and _is_known(entry, _listing(landed), self.catalog.architectures):
            return self.catalog.record(objects.uri, self.prefix, base_id)
        return describe_base(_Listed(objects, landed.infos), where, base_id)


def discover(
    objects: Objects,
    prefix: str,
    quiet_period_s: float,
    only: Collection[str] | None = None,
    before: CatalogSnapshot | None = None,
) -> tuple[list[BaseRecord], list[SkippedBase]]:
    """All complete checkpoints under a prefix, and all others with a reason, both sorted by id.

    With `only`, those of these ids, and nothing else is listed. What was seen `before` is not read or listed again.
    """
    key = _catalog_key(prefix)
    known = before.catalog if before else _read(objects, key)
    architectures, entries = dict(known.architectures), dict(known.entries)
    landed = list_landed(objects, prefix, only, before.landed if before else None)
    for base_id in [base_id for base_id in entries if base_id not in landed and (only is None or base_id in only)]:
        del entries[base_id]
    skipped: dict[str, str] = {}
    for base_id, candidate in sorted(landed.items()):
        if reason := candidate.reason or unquiet(candidate, f"{prefix}/{base_id}/", quiet_period_s):
            skipped[base_id] = reason
            continue
        listing = _listing(candidate)
        if _is_known(entries.get(base_id), listing, architectures):
            continue
        entries.pop(base_id, None)
        try:
            check_files(objects, f"{prefix}/{base_id}/", candidate.infos)
            record = describe_base(_Listed(objects, candidate.infos), f"{prefix}/{base_id}/", base_id)
        except BaseModelError as error:
            entries[base_id] = CatalogEntry(listing=listing, reason=printable(str(error)))
        except OralError as error:  # it may be otherwise the next time, though the listing is the same
            skipped[base_id] = str(error)
        except Exception as error:  # whatever there is in this one, the others must be looked at
            logger.exception("looking at base %s failed", base_id)
            skipped[base_id] = (
                f"looking at it failed: {type(error).__name__}: {error}; the log has more, please report it"
            )
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
    skipped |= {
        base_id: entries[base_id].reason
        for base_id in landed
        if base_id not in skipped and base_id in entries and entries[base_id].reason
    }
    records = [catalog.record(objects.uri, prefix, base_id) for base_id in sorted(landed) if base_id not in skipped]
    return records, [SkippedBase(id=base_id, reason=reason) for base_id, reason in sorted(skipped.items())]


def _catalog_key(prefix: str) -> str:
    return f"cache/bases/{prefix}.json"


def _listing(landed: Landed) -> str:
    """What is another one whenever a file came, went or was replaced."""
    return fingerprint([[ascii(info.key), info.num_bytes, info.tag] for info in landed.infos])


def _is_known(entry: CatalogEntry | None, listing: str, architectures: Collection[str]) -> bool:
    """Whether an entry still says what is there; one whose architecture is lost says nothing."""
    return entry is not None and entry.listing == listing and bool(entry.reason or entry.architecture in architectures)


def _read(objects: Objects, key: str) -> Catalog:
    """The catalog as it was kept; an empty one where there is none, or one by other rules or damaged."""
    empty = Catalog(rules=fingerprint(RULES_VERSION, knows()))
    try:
        kept = Catalog.model_validate(json.loads(objects.get(key)))
    except MissingObjectError:
        return empty
    except (StoreError, ValueError, RecursionError) as error:
        logger.warning("%s/%s cannot be read and made anew: %s", objects.uri, key, str(error).partition("\n")[0])
        return empty
    return kept if kept.rules == empty.rules else empty


class _Listed:
    """A checkpoint's files as a listing saw them: whether there is one, and how long it is, costs no call."""

    def __init__(self, objects: Objects, infos: Sequence[ObjectInfo]) -> None:
        self.uri = objects.uri
        self.get, self.range = objects.get, objects.range
        self._infos, self._sizes = [*infos], {info.key: info.num_bytes for info in infos}

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return (info for info in self._infos if info.key.startswith(prefix))

    def exists(self, key: str) -> bool:
        return key in self._sizes

    def num_bytes(self, key: str) -> int:
        return self._sizes[key]
