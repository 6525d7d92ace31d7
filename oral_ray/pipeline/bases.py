"""Stage 0: bring the configured base versions into the store (import, evolve, or check that they have landed)."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from oral_ray.bases.catalog import BaseRecord
from oral_ray.bases.corpora import load_corpus
from oral_ray.bases.evolve import evolve_base
from oral_ray.bases.loading import import_base
from oral_ray.bases.pretrain import pretrain_base
from oral_ray.cluster import Call, device_of
from oral_ray.config import (
    BaseVersion,
    Config,
    EvolveOrigin,
    ImportOrigin,
    LandedOrigin,
    PretrainOrigin,
    fingerprint,
)
from oral_ray.errors import BaseModelError
from oral_ray.objects import open_objects
from oral_ray.pipeline.run import Run
from oral_ray.tasks.wordnet import lemma_gloss_pairs

logger = logging.getLogger(__name__)
RECORDS = "base-versions"  # another name when fingerprints cover something else: old ones then say nothing


def resolve_bases(run: Run, versions: Sequence[BaseVersion] | None = None) -> Run:
    """The run with the records of its versions, all or some of them, in their order; made where they are not there yet.

    Raises BaseModelError when a version in the store was made by another recipe than the configured one.
    """
    versions = run.config.bases.versions if versions is None else versions
    bases: dict[str, BaseRecord] = {}
    for wave in _waves(versions):
        bases |= _resolve_wave(run, wave, bases)
    return run.with_bases({version.id: bases[version.id] for version in versions})


def _resolve_wave(run: Run, wave: Sequence[BaseVersion], earlier: Mapping[str, BaseRecord]) -> dict[str, BaseRecord]:
    """The records of versions whose parents are there, by id."""
    parents = {version.id: earlier.get(_parent_id(version)) for version in wave}
    recipes = {version.id: _recipe(version, parents[version.id]) for version in wave}
    there = {version.id: run.base_store.has(version.id) for version in wave}
    on_record = {base_id: run.records.get(RECORDS, recipe) for base_id, recipe in recipes.items() if there[base_id]}
    _check_recipes(run, [base_id for base_id, record in on_record.items() if record is None])
    missing = [version for version in wave if not there[version.id]]
    _make(run, [version for version in missing if not isinstance(version.origin, LandedOrigin)], parents)
    records = {}
    for version in wave:
        record = run.base_store.record(version.id)
        if not isinstance(version.origin, LandedOrigin):
            _check_content(run, record, recipes[version.id], on_record.get(version.id))
        records[version.id] = record
    return records


def _recipe(version: BaseVersion, parent: BaseRecord | None) -> str:
    return fingerprint("base", version.id, version.origin, parent.fingerprint if parent else "")


def _check_recipes(run: Run, unknown: Sequence[str]) -> None:
    """BaseModelError where versions that are there, and that their recipes did not make, were made by others."""
    made = {record["id"] for record in run.records.all(RECORDS)} if unknown else set()
    for base_id in unknown:
        if base_id in made:
            raise BaseModelError(
                f"base {base_id!r} in {run.objects.uri} was made by another recipe than the configured one; give the new "
                "one another id, or take another store"
            )


def _waves(versions: Sequence[BaseVersion]) -> list[list[BaseVersion]]:
    """The versions in the order in which they can be made: those of one wave have their parents in earlier ones."""
    depth: dict[str, int] = {}
    for version in versions:
        parent = _parent_id(version)
        if parent and parent not in depth:
            raise BaseModelError(
                f"base {version.id!r} evolves from {parent!r}, which is not configured before it; "
                f"there are {', '.join(depth) or 'none'}"
            )
        depth[version.id] = depth[parent] + 1 if parent else 0
    return [[version for version in versions if depth[version.id] == d] for d in sorted({*depth.values()})]


def _make(run: Run, versions: Sequence[BaseVersion], parents: Mapping[str, BaseRecord | None]) -> None:
    """Make versions side by side (no lineage waits for another), with the threads of the one that has most."""
    if not versions:
        return
    logger.info("making base %s", ", ".join(version.id for version in versions))
    calls: list[Call] = []
    for version in versions:
        prefix = run.base_store.key_prefix(version.id)
        calls.append((make_base, (run.config, prefix, version, parents[version.id])))
    trained = [v.origin.threads for v in versions if isinstance(v.origin, EvolveOrigin | PretrainOrigin)]
    if trained:
        cluster = run.config.cluster.model_copy(update={"threads_per_task": max(trained)})
        run = run.over(run.config.model_copy(update={"cluster": cluster}))
    run.on_cluster(calls, label="bases", retries=1)
    run.base_store.forget()


def _check_content(run: Run, record: BaseRecord, recipe: str, made: dict[str, Any] | None) -> None:
    """BaseModelError where a version that was made here is not what its recipe made; the first look is put on record."""
    if made is None:
        made = run.records.commit(RECORDS, recipe, {"id": record.id, "fingerprint": record.fingerprint})
    if made["fingerprint"] != record.fingerprint:
        raise BaseModelError(
            f"base {record.id!r} in {record.uri} has fingerprint {record.fingerprint}, its recipe made "
            f"{made['fingerprint']}; it was replaced, give the new one another id"
        )


def make_base(config: Config, prefix: str, version: BaseVersion, parent: BaseRecord | None) -> None:
    """Worker: import, evolve or pretrain one version; `parent` is the record of what it is made from."""
    objects = open_objects(config.store)
    device = device_of(config.cluster.gpus_per_task)
    if isinstance(version.origin, ImportOrigin):
        import_base(version.origin.source, objects, prefix)
    elif isinstance(version.origin, EvolveOrigin) and parent:
        evolve_base(parent, objects, prefix, version.origin, lemma_gloss_pairs(), device)
    elif isinstance(version.origin, PretrainOrigin) and parent:
        pretrain_base(parent, objects, prefix, version.origin, load_corpus(version.origin.corpus), device)


def _parent_id(version: BaseVersion) -> str:
    """What a version is made from; empty where it is not made from another."""
    return version.origin.parent if isinstance(version.origin, EvolveOrigin | PretrainOrigin) else ""
