"""Stage 0: bring the configured base versions into the store (import, evolve, or check that they have landed)."""

import logging

from oral_ray.bases.catalog import BaseRecord
from oral_ray.bases.corpora import load_corpus
from oral_ray.bases.evolve import evolve_base
from oral_ray.bases.loading import import_base
from oral_ray.bases.pretrain import pretrain_base
from oral_ray.cluster import run_tasks
from oral_ray.config import (
    BaseVersion,
    Config,
    EvolveOrigin,
    ImportOrigin,
    LandedOrigin,
    PretrainOrigin,
    StoreConfig,
    fingerprint,
)
from oral_ray.errors import BaseModelError
from oral_ray.objects import Objects, open_objects
from oral_ray.store.bases import BaseShelf
from oral_ray.store.records import Records
from oral_ray.tasks.wordnet import lemma_gloss_pairs

logger = logging.getLogger(__name__)


def run(config: Config) -> dict[str, BaseRecord]:
    """Records of all configured versions by id, in the configured order; made where they are not there yet.

    Raises BaseModelError when a version in the store was made by another recipe than the configured one.
    """
    objects = open_objects(config.store)
    shelf, records = BaseShelf(objects, config.bases.prefix), Records(objects)
    found: dict[str, BaseRecord] = {}
    for version in config.bases.versions:
        parent = _parent(version, found)
        recipe = fingerprint("base", version.id, version.origin, parent.fingerprint if parent else "")
        done = records.get("bases", recipe)
        if done is None and shelf.has(version.id) and any(made["id"] == version.id for made in records.all("bases")):
            raise BaseModelError(
                f"base {version.id!r} in {objects.uri} was made by another recipe than the configured one; give the new "
                "one another id, or take another store"
            )
        if not shelf.has(version.id) and not isinstance(version.origin, LandedOrigin):
            logger.info("making base %s", version.id)
            cluster = config.cluster
            if isinstance(version.origin, EvolveOrigin | PretrainOrigin):
                cluster = cluster.model_copy(update={"threads_per_task": version.origin.threads})
            call = (make_base, (config.store, shelf.key_prefix(version.id), version, parent.uri if parent else ""))
            run_tasks([call], cluster, determinism=config.determinism, retries=1, label=f"base {version.id}")
            done = None
        record = shelf.record(version.id)
        if done is None and not isinstance(version.origin, LandedOrigin):
            done = records.commit("bases", recipe, {"id": version.id, "fingerprint": record.fingerprint})
        if done is not None and done["fingerprint"] != record.fingerprint:
            raise BaseModelError(
                f"base {version.id!r} in {objects.uri} has fingerprint {record.fingerprint}, its recipe made "
                f"{done['fingerprint']}; it was replaced, give the new one another id"
            )
        found[version.id] = record
    return found


def make_base(store: StoreConfig, prefix: str, version: BaseVersion, parent_uri: str) -> None:
    """Worker: import, evolve or pretrain one version."""
    objects: Objects = open_objects(store)
    if isinstance(version.origin, ImportOrigin):
        import_base(version.origin.source, objects, prefix)
    elif isinstance(version.origin, EvolveOrigin):
        evolve_base(parent_uri, objects, prefix, version.origin, lemma_gloss_pairs())
    elif isinstance(version.origin, PretrainOrigin):
        pretrain_base(parent_uri, objects, prefix, version.origin, load_corpus(version.origin.corpus))


def _parent(version: BaseVersion, found: dict[str, BaseRecord]) -> BaseRecord | None:
    if not isinstance(version.origin, EvolveOrigin | PretrainOrigin):
        return None
    if version.origin.parent not in found:
        raise BaseModelError(
            f"base {version.id!r} evolves from {version.origin.parent!r}, which is not configured before it; "
            f"there are {', '.join(found) or 'none'}"
        )
    return found[version.origin.parent]
