"""What make chaos looks at: a reader that polls as an engine does, everything that is released, what belongs to nothing."""

import multiprocessing
import time
from pathlib import Path
from typing import Any

from oral_ray.adapters.artifact import parse_artifact
from oral_ray.errors import OralError
from oral_ray.objects import FileObjects, open_objects
from oral_ray.store.garbage import collect, plan_collection
from oral_ray.store.releases import ReleaseStore


class Reader:
    """A process that looks at the serving view and the releases of a store again and again, as an engine would."""

    def __init__(self, uri: str, pause_s: float = 0.03) -> None:
        self._uri, self._pause_s, self.looks, self.partial = uri, pause_s, 0, 0

    def __enter__(self) -> "Reader":
        context = multiprocessing.get_context("fork")
        self._done, (self._answer, theirs) = context.Event(), context.Pipe(duplex=False)
        self._process = context.Process(target=self._look, args=(theirs,), daemon=True)
        self._process.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        if self._answer.poll(30):
            self.looks, self.partial = self._answer.recv()
        self._process.join(30)

    def _look(self, answer: Any) -> None:
        objects, looks, partial = open_objects(self._uri), 0, 0
        known: set[str] = set()
        while not self._done.is_set():
            looks += 1
            named = {f"published/{base}/{a.adapter_id}/" for base, a in released_adapters(objects)}
            marked = {
                info.key.removesuffix("adapter_config.json")
                for info in objects.list("published/")
                if info.key.endswith("/adapter_config.json")
            }
            for prefix in (named | marked) - known:
                if whole(objects, prefix):
                    known.add(prefix)
                else:
                    partial += 1
            time.sleep(self._pause_s)
        answer.send((looks, partial))


def released_adapters(objects: Any) -> list[tuple[str, Any]]:
    """(base, adapter) of every latest release."""
    releases = ReleaseStore(objects)
    latest = [
        (base_id, releases.latest(base_id, name)) for base_id in releases.bases() for name in releases.names(base_id)
    ]
    return [(base_id, adapter) for base_id, release in latest if release for adapter in release.adapters]


def whole(objects: Any, prefix: str) -> bool:
    """Whether an adapter of the serving view has all its files and is what its name says."""
    names = ("adapter_config.json", "adapter_model.safetensors", "provenance.json")
    try:
        objects.get(f"{prefix}README.md")
        digest = parse_artifact({name: objects.get(prefix + name) for name in names}, prefix).digest
    except OralError:
        return False
    return digest[:12] == prefix.rstrip("/")[-12:]


def released(objects: Any) -> dict[str, bytes]:
    """Everything under releases/ and published/, byte for byte."""
    return {info.key: objects.get(info.key) for prefix in ("releases/", "published/") for info in objects.list(prefix)}


def sequences(store: Path | str) -> dict[str, list[int]]:
    """The numbers of the releases of every base."""
    releases = ReleaseStore(open_objects(str(store)))
    names = [(base_id, name) for base_id in releases.bases() for name in releases.names(base_id)]
    return {base_id: releases.sequence(base_id, name) for base_id, name in names}


def sweep(store: Path | str) -> int:
    """Collect all garbage, however young; how many things it was."""
    objects = open_objects(str(store))
    units = plan_collection(objects, grace_s=0.0)
    collect(objects, units)
    return len(units)


def orphans(objects: Any) -> list[str]:
    """What is left and belongs to nothing: folders of the serving view that no release names, adapters without their
    marker or that no record, release or run names, temporary files and unfinished uploads."""
    named = {f"published/{base}/{a.adapter_id}" for base, a in released_adapters(objects)}
    shown = {info.key.rpartition("/")[0] for info in objects.list("published/")}
    keys = [info.key for info in objects.list("adapters/")]
    marked = {key.rpartition("/")[0] for key in keys if key.endswith("/adapter_config.json")}
    roots = [info.key for prefix in ("records/", "releases/", "runs/") for info in objects.list(prefix)]
    said = b"".join(objects.get(key) for key in roots)
    unnamed = {where for where in marked if where.rpartition("/")[2].encode() not in said}
    left = {info.key for info in objects.leftovers()}
    return sorted((shown - named) | ({key.rpartition("/")[0] for key in keys} - marked) | unnamed | left)


def upload(folder: Path, uri: str) -> None:
    """Copy a store."""
    here, there = FileObjects(folder), open_objects(uri)
    for info in here.list():
        there.upload(folder / info.key, info.key)
