"""Generators in the store: `generators/<recipe>/`, files first, manifest.json (their hashes) last."""

import hashlib
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from oral_ray.config import canonical_json
from oral_ray.errors import GeneratorError, MissingObjectError
from oral_ray.generator.model import DESCRIPTION, WEIGHTS, Generator, load_generator
from oral_ray.objects import Objects

METRICS = "metrics.parquet"
_MANIFEST = "manifest.json"
_AGAIN = "delete its folder and train it again"


def put_generator(objects: Objects, recipe: str, folder: Path) -> None:
    """Store a generator folder (and its training metrics, when there are any) under its recipe fingerprint."""
    hashes = {}
    for name in (WEIGHTS, DESCRIPTION, METRICS):
        if (folder / name).is_file():
            hashes[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            objects.upload(folder / name, f"generators/{recipe}/{name}")
    objects.put_if_absent(f"generators/{recipe}/{_MANIFEST}", canonical_json({"files": hashes}).encode())


def promote_generator(objects: Objects, name: str, recipe: str) -> None:
    """Make a generator the current one of a name; append-only, a no-op when it is current already."""
    while current_generator(objects, name) != recipe:
        names = [info.key.rpartition("/")[2] for info in objects.list(f"current/{name}/")]
        number = max((int(n[:8]) for n in names if re.fullmatch(r"\d{8}\.json", n)), default=0) + 1  # gaps do no harm
        objects.put_if_absent(f"current/{name}/{number:08d}.json", canonical_json({"recipe": recipe}).encode())


def current_generator(objects: Objects, name: str) -> str | None:
    """The recipe of the current generator of a name, or None."""
    keys = [info.key for info in objects.list(f"current/{name}/")]
    try:
        return str(json.loads(objects.get(keys[-1]))["recipe"]) if keys else None
    except (ValueError, KeyError, TypeError):
        raise GeneratorError(f"{keys[-1]} in {objects.uri} is damaged; delete it and run jobs/train.py again") from None


def generator_manifest(objects: Objects, recipe: str) -> dict[str, Any] | None:
    """The manifest of a generator, or None when it is not (wholly) there."""
    key = f"generators/{recipe}/{_MANIFEST}"
    try:
        manifest = json.loads(objects.get(key))
        return {"files": dict(manifest["files"])}
    except MissingObjectError:
        return None
    except (ValueError, KeyError, TypeError):
        raise GeneratorError(f"{key} in {objects.uri} is damaged; {_AGAIN}") from None


def read_metrics(objects: Objects, recipe: str) -> list[dict[str, Any]]:
    """The training log of a generator, one row a report."""
    key = f"generators/{recipe}/{METRICS}"
    try:
        return list(pq.read_table(pa.BufferReader(objects.get(key))).to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise GeneratorError(f"{key} in {objects.uri} is damaged: {error}; {_AGAIN}") from None


def get_generator(objects: Objects, recipe: str) -> Generator:
    """Load a generator by recipe fingerprint; GeneratorError when it is missing or damaged."""
    manifest = generator_manifest(objects, recipe)
    if manifest is None:
        raise GeneratorError(f"no generator {recipe} in {objects.uri}; run jobs/train.py with the same configuration")
    with tempfile.TemporaryDirectory(prefix="oral-generator-") as name:
        for file, digest in manifest["files"].items():
            key = f"generators/{recipe}/{file}"
            try:
                objects.download(key, Path(name) / file)
            except MissingObjectError:
                raise GeneratorError(f"{key} in {objects.uri} is lost; {_AGAIN}") from None
            if hashlib.sha256((Path(name) / file).read_bytes()).hexdigest() != digest:
                raise GeneratorError(f"{key} in {objects.uri} is damaged; {_AGAIN}")
        return load_generator(Path(name))
