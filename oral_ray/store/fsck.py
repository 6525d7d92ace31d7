"""What is wrong in a store: damaged adapters and generators, half-published folders, releases of what is not there."""

from collections.abc import Callable, Iterator
from pathlib import Path

from oral_ray.adapters.artifact import CONFIG
from oral_ray.errors import OralError
from oral_ray.objects import Objects, in_parallel
from oral_ray.store.adapters import AdapterStore
from oral_ray.store.generators import read_metrics, verify_generator
from oral_ray.store.releases import ReleaseStore
from oral_ray.store.tasks import damaged_tasks


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
    yield from _releases(objects, store, published, whole, public_key)
    yield from damaged_tasks(objects)
    for recipe in sorted({info.key.split("/")[1] for info in objects.list("generators/")}):
        for ask in (verify_generator, read_metrics):
            if fault := _fault(lambda ask=ask, recipe=recipe: ask(objects, recipe)):
                yield fault
                break


def _releases(
    objects: Objects, store: AdapterStore, published: str, whole: set[str], public_key: Path | None
) -> Iterator[str]:
    releases = ReleaseStore(objects)
    for base_id in releases.bases():
        for seq in releases.sequence(base_id):
            try:
                release = releases.get(base_id, seq)
            except OralError as error:
                yield str(error)
                continue
            for adapter in release.adapters:
                where = f"{published}/{base_id}/{adapter.adapter_id}"
                if f"adapters/{adapter.digest}" not in whole:
                    yield f"release {seq} of base {base_id!r} names adapter {adapter.digest}, which is not there"
                if where not in whole:
                    yield f"release {seq} of base {base_id!r} names {where}, which is not there"
                elif fault := _fault(lambda w=where, a=adapter: store.check_published(w, a.digest, public_key)):
                    yield fault


def _fault(ask: Callable[[], object]) -> str:
    try:
        ask()
    except OralError as error:
        return str(error)
    return ""
