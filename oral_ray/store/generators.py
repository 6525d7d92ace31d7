"""Generators in the store: `generators/<recipe>/<hash>/<file>`, then manifest.json, which names files and hashes.

Two runs of one recipe at once cannot mix their files; the first manifest counts.
"""

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from oral_ray.bases.headers import read_header
from oral_ray.config import canonical_json, fingerprint
from oral_ray.errors import BaseModelError, GeneratorError, MissingObjectError
from oral_ray.generator.model import DESCRIPTION, MEAN, WEIGHTS, Generator, load_generator
from oral_ray.generator.spec import GeneratorSpec
from oral_ray.local.parquet import parse_table
from oral_ray.objects import Objects
from oral_ray.store.records import Journal

METRICS = "metrics.parquet"
_MANIFEST = "manifest.json"
_AGAIN = "delete its folder and train it again"


def put_generator(objects: Objects, recipe: str, folder: Path, corpus: str = "") -> None:
    """Store a generator folder (and its training metrics, when there are any) under its recipe fingerprint.

    `corpus` is the fingerprint of the shards that it was trained on, where it is of any.
    """
    hashes = {}
    for name in (WEIGHTS, DESCRIPTION, METRICS):
        if (folder / name).is_file():
            hashes[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            objects.upload(folder / name, _key(recipe, name, hashes[name]))
    manifest = {"corpus": corpus, "files": hashes}
    objects.put_if_absent(f"generators/{recipe}/{_MANIFEST}", canonical_json(manifest).encode())


def promote_generator(objects: Objects, name: str, recipe: str) -> None:
    """Make a generator the current one of a name; append-only, a no-op when it is current already."""
    journal = _journal(objects, name)
    journal.append({"recipe": recipe}, unless=lambda last: _recipe(objects, journal, last) == recipe)


def current_generator(objects: Objects, name: str) -> str | None:
    """The recipe of the current generator of a name, or None."""
    journal = _journal(objects, name)
    numbers = journal.numbers()
    return _recipe(objects, journal, numbers[-1]) if numbers else None


def _recipe(objects: Objects, journal: Journal, number: int) -> str:
    try:
        return str(json.loads(journal.get(number))["recipe"])
    except (ValueError, KeyError, TypeError):
        raise GeneratorError(
            f"{journal.key(number)} in {objects.uri} is damaged; delete it and run jobs/train.py again"
        ) from None


def _journal(objects: Objects, name: str) -> Journal:
    return Journal(objects, f"current/{name}/")


def generator_manifest(objects: Objects, recipe: str) -> dict[str, Any] | None:
    """The manifest of a generator, or None when it is not (wholly) there."""
    key = f"generators/{recipe}/{_MANIFEST}"
    try:
        manifest = json.loads(objects.get(key))
        return {"corpus": str(manifest.get("corpus", "")), "files": dict(manifest["files"])}
    except MissingObjectError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise GeneratorError(f"{key} in {objects.uri} is damaged; {_AGAIN}") from None


def read_metrics(objects: Objects, recipe: str) -> list[dict[str, Any]]:
    """The training log of a generator, one row a report; empty where none was stored with it."""
    digest = _require(objects, recipe)["files"].get(METRICS)
    if digest is None:
        return []
    key = _key(recipe, METRICS, digest)
    try:
        return list(parse_table(_read(objects, key, digest)).to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise GeneratorError(f"{key} in {objects.uri} is damaged: {error}; {_AGAIN}") from None


def verify_generator(objects: Objects, recipe: str) -> None:
    """Compare every file of a generator with the hash in its manifest; GeneratorError names the first that differs."""
    for file, digest in _require(objects, recipe)["files"].items():
        _read(objects, _key(recipe, file, digest), digest)


def _read(objects: Objects, key: str, digest: str) -> bytes:
    try:
        data = objects.get(key)
    except MissingObjectError:
        raise GeneratorError(f"{key} in {objects.uri} is lost; {_AGAIN}") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise GeneratorError(f"{key} in {objects.uri} is damaged; {_AGAIN}")
    return data


def get_generator(objects: Objects, recipe: str) -> Generator:
    """Load a generator by recipe fingerprint; GeneratorError when it is missing or damaged."""
    hashes, cache = _require(objects, recipe)["files"], objects.cache
    entry = f"generator-{recipe}-{fingerprint(hashes)}"
    with tempfile.TemporaryDirectory(prefix="oral-generator-") as name:
        folder = Path(name)
        if cache is None or not cache.copy(entry, folder, lambda folder: not _damaged(folder, hashes)):
            for file, digest in hashes.items():
                try:
                    objects.download(_key(recipe, file, digest), folder / file)
                except MissingObjectError:
                    raise GeneratorError(f"{_key(recipe, file, digest)} in {objects.uri} is lost; {_AGAIN}") from None
            if file := _damaged(folder, hashes):
                raise GeneratorError(f"{_key(recipe, file, hashes[file])} in {objects.uri} is damaged; {_AGAIN}")
            if cache is not None:
                cache.keep(entry, folder)
        return load_generator(folder)


def _damaged(folder: Path, hashes: dict[str, str]) -> str:
    """The first file of a folder that has another hash, or is not there; empty where all are as they were."""
    for file, digest in hashes.items():
        path = folder / file
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            return file
    return ""


class Lineage(NamedTuple):
    """What a generator is: its recipe, a digest over its files, the corpus that it was trained on ("": not recorded)."""

    recipe: str
    digest: str = ""
    corpus: str = ""


def generator_lineage(objects: Objects, recipe: str) -> Lineage:
    """The lineage of a generator, from its manifest; GeneratorError when it is not there."""
    manifest = _require(objects, recipe)
    weights = {name: manifest["files"][name] for name in (WEIGHTS, DESCRIPTION)}
    return Lineage(recipe, hashlib.sha256(canonical_json(weights).encode()).hexdigest(), manifest["corpus"])


@dataclass(frozen=True, slots=True)
class GeneratorCard:
    """A generator without its weights: its description, and the digests of the layouts that its corpus has."""

    spec: GeneratorSpec
    layouts: frozenset[str]


def describe_generator(objects: Objects, recipe: str) -> GeneratorCard:
    """The card of a generator, from its description and the header of its weights; GeneratorError as for loading."""
    hashes = _require(objects, recipe)["files"]
    try:
        description = json.loads(objects.get(_key(recipe, DESCRIPTION, hashes[DESCRIPTION])))
        header = read_header(objects, _key(recipe, WEIGHTS, hashes[WEIGHTS]))
        layouts = frozenset(name.removeprefix(MEAN) for name in header if name.startswith(MEAN))
        return GeneratorCard(GeneratorSpec.model_validate(description["spec"]), layouts)
    except (ValueError, KeyError, TypeError, MissingObjectError, BaseModelError) as error:
        raise GeneratorError(f"generator {recipe} in {objects.uri} is damaged: {error}; {_AGAIN}") from None


def _require(objects: Objects, recipe: str) -> dict[str, Any]:
    manifest = generator_manifest(objects, recipe)
    if manifest is None:
        raise GeneratorError(f"no generator {recipe} in {objects.uri}; run jobs/train.py with the same configuration")
    return manifest


def _key(recipe: str, file: str, digest: str) -> str:
    return f"generators/{recipe}/{digest[:16]}/{file}"
