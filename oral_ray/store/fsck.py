"""What is wrong in a store: damaged adapters and generators, half-published folders, names of what is not there.

Every fault says how it is mended.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from oral_ray.adapters.artifact import CONFIG
from oral_ray.errors import OralError
from oral_ray.objects import Objects, in_parallel
from oral_ray.store.adapters import AdapterStore
from oral_ray.store.generators import read_metrics, verify_generator
from oral_ray.store.records import Records
from oral_ray.store.releases import Release, ReleaseKey, parse_key, read_release
from oral_ray.store.tasks import damaged_tasks

# What makes again what a record of a namespace names: the job does so by itself, where the adapter is asked for.
_MADE_BY = {
    "corpus": "jobs/corpus.py trains it again",
    "static": "the job that needs it trains it again",
    "generated": "whoever asks for it next has it generated again",
    "gate": "jobs/regenerate.py decides again where it is not released yet",
}


def find_faults(objects: Objects, published: str = "published", public_key: Path | None = None) -> Iterator[str]:
    """One sentence a fault; every adapter and generator is read and its digest compared.

    With a key, every released adapter must be signed by it.
    """
    store = AdapterStore(objects)
    folders: dict[str, set[str]] = {}
    for prefix, depth in (("adapters/", 2), (f"{published}/", 3)):
        for info in objects.list(prefix):
            parts = info.key.split("/")
            folders.setdefault("/".join(parts[:depth]), set()).add("/".join(parts[depth:]))
    for name, files in sorted(folders.items()):
        if CONFIG not in files:
            yield f"{name}: half-written, {CONFIG} is missing; a second run finishes it, gc removes it"
    digests = [
        name.split("/")[1] for name, files in folders.items() if name.startswith("adapters/") and CONFIG in files
    ]
    yield from filter(None, in_parallel(objects, lambda digest: _fault(lambda: store.check(digest)), digests))
    whole = {name for name, files in folders.items() if CONFIG in files}
    yield from _records(objects, whole)
    yield from _releases(objects, store, published, whole, public_key)
    yield from damaged_tasks(objects)
    for recipe in sorted({info.key.split("/")[1] for info in objects.list("generators/")}):
        for ask in (verify_generator, read_metrics):
            if fault := _fault(lambda ask=ask, recipe=recipe: ask(objects, recipe)):
                yield fault
                break


def _records(objects: Objects, whole: set[str]) -> Iterator[str]:
    """Records that cannot be read, or that name adapters which are not there."""
    records = Records(objects)
    keys = [info.key.split("/") for info in objects.list("records/")]
    named = [(parts[1], parts[2].removesuffix(".json")) for parts in keys if len(parts) == 3]

    def look(place: tuple[str, str]) -> list[str]:
        namespace, fingerprint = place
        try:
            record = records.get(namespace, fingerprint) or {}
        except OralError as error:
            return [str(error)]
        return [
            f"records/{namespace}/{fingerprint}.json names adapter {digest}, which is not there; {_MADE_BY[namespace]}"
            for digest in _named(namespace, record)
            if f"adapters/{digest}" not in whole
        ]

    for faults in in_parallel(objects, look, named):
        yield from faults


def _named(namespace: str, record: dict[str, Any]) -> list[str]:
    """The adapters that a record needs; a score stays true when its adapter is gone."""
    if namespace not in _MADE_BY:
        return []
    several = record.get("digests")
    found = list(several) if isinstance(several, list) else [record.get("digest")]
    return [str(digest) for digest in found if digest]


def _releases(
    objects: Objects, store: AdapterStore, published: str, whole: set[str], public_key: Path | None
) -> Iterator[str]:
    for key in filter(None, (parse_key(info.key) for info in objects.list("releases/"))):
        try:
            release = read_release(objects, key)
        except OralError as error:
            yield str(error)
            continue
        yield from _released(key, release, store, published, whole, public_key)


def _released(
    key: ReleaseKey, release: Release, store: AdapterStore, published: str, whole: set[str], public_key: Path | None
) -> Iterator[str]:
    again = (
        f"; delete the releases that name it, such as {key.path}, and run jobs/regenerate.py, which publishes it again"
    )
    who = f"release {key.number} of base {key.base!r} ({release.name})"
    for adapter in release.adapters:
        where = f"{published}/{key.base}/{adapter.adapter_id}"
        if f"adapters/{adapter.digest}" not in whole:
            yield f"{who} names adapter {adapter.digest}, which is not there{again}"
        if where not in whole:
            yield f"{who} names {where}, which is not there{again}"
        elif fault := _fault(lambda w=where, a=adapter: store.check_published(w, a.digest, public_key)):
            yield f"{fault}{again}" if "has digest" in fault else fault


def _fault(ask: Callable[[], object]) -> str:
    try:
        ask()
    except OralError as error:
        return str(error)
    return ""
