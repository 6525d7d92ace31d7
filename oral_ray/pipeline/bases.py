"""Stage 0: bring the configured base versions into the store (import, evolve, or check that they have landed)."""

import logging
from collections.abc import Sequence

from oral_ray.bases.catalog import BaseRecord
from oral_ray.bases.corpora import load_corpus
from oral_ray.bases.evolve import evolve_base
from oral_ray.bases.loading import import_base
from oral_ray.bases.pretrain import pretrain_base
from oral_ray.cluster import Call, device_of, run_tasks
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
from oral_ray.objects import Objects, open_objects
from oral_ray.store.bases import BaseStore
from oral_ray.store.records import Records
from oral_ray.tasks.wordnet import lemma_gloss_pairs

logger = logging.getLogger(__name__)
RECORDS = "base-versions"  # another name when fingerprints cover something else: old ones then say nothing


def run(config: Config) -> dict[str, BaseRecord]:
    """Records of all configured versions by id, in the configured order; made where they are not there yet.

    Raises BaseModelError when a version in the store was made by another recipe than the configured one.
    """
    objects = open_objects(config.store)
    base_store, records = BaseStore(objects, config.bases.prefix), Records(objects)
    found: dict[str, BaseRecord] = {}
    for wave in _waves(config.bases.versions):
        parents = {version.id: found.get(_parent_id(version)) for version in wave}
        recipes = {
            v.id: fingerprint("base", v.id, v.origin, p.fingerprint if (p := parents[v.id]) else "") for v in wave
        }
        missing = [version for version in wave if not base_store.has(version.id)]
        for version in wave:
            is_known = version in missing or records.get(RECORDS, recipes[version.id]) is not None
            if not is_known and any(made["id"] == version.id for made in records.all(RECORDS)):
                raise BaseModelError(
                    f"base {version.id!r} in {objects.uri} was made by another recipe than the configured one; give the "
                    "new one another id, or take another store"
                )
        _make(config, [v for v in missing if not isinstance(v.origin, LandedOrigin)], base_store, parents)
        found |= {version.id: _checked(version, recipes[version.id], base_store, records) for version in wave}
    return {version.id: found[version.id] for version in config.bases.versions}


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


def _make(
    config: Config, versions: Sequence[BaseVersion], base_store: BaseStore, parents: dict[str, BaseRecord | None]
) -> None:
    """Make versions side by side (no line of descent waits for another), with the threads of the one that has most."""
    if not versions:
        return
    logger.info("making base %s", ", ".join(version.id for version in versions))
    calls: list[Call] = [(make_base, (config, base_store.key_prefix(v.id), v, parents[v.id])) for v in versions]
    trained = [v.origin.threads for v in versions if isinstance(v.origin, EvolveOrigin | PretrainOrigin)]
    cluster = config.cluster.model_copy(update={"threads_per_task": max(trained)}) if trained else config.cluster
    run_tasks(calls, cluster, determinism=config.determinism, retries=1, label="bases")


def _checked(version: BaseVersion, recipe: str, base_store: BaseStore, records: Records) -> BaseRecord:
    """The record of a version that is there; BaseModelError where it is not what its recipe made."""
    record = base_store.record(version.id)
    if isinstance(version.origin, LandedOrigin):
        return record
    about = {"id": version.id, "fingerprint": record.fingerprint}
    done = records.get(RECORDS, recipe) or records.commit(RECORDS, recipe, about)
    if done["fingerprint"] != record.fingerprint:
        raise BaseModelError(
            f"base {version.id!r} in {record.uri} has fingerprint {record.fingerprint}, its recipe made "
            f"{done['fingerprint']}; it was replaced, give the new one another id"
        )
    return record


def make_base(config: Config, prefix: str, version: BaseVersion, parent: BaseRecord | None) -> None:
    """Worker: import, evolve or pretrain one version; `parent` is the record of what it is made from."""
    objects: Objects = open_objects(config.store)
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
