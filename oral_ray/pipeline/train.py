"""Stage 3: train the generator on the shards with Ray Train; weights and metrics go to `generators/<recipe>/`.

Checkpoints of the run lie under `training/<recipe>/` and are what a lost worker, or the same command run again, resumes
from.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from oral_ray import cluster
from oral_ray.config import (
    Config,
    FunctionalPhase,
    RegressionObjective,
    TorchEngine,
    TrainingConfig,
    fingerprint,
)
from oral_ray.errors import GeneratorError, StoreError
from oral_ray.generator.condition import ConditionEncoder
from oral_ray.generator.data import CorpusRow
from oral_ray.generator.model import Generator, build_network, save_generator
from oral_ray.generator.spec import GeneratorSpec
from oral_ray.generator.training import MetricsRow, train
from oral_ray.local.parquet import parse_table
from oral_ray.objects import Objects, open_objects
from oral_ray.pipeline import shards
from oral_ray.pipeline.material import functional_draw, further_tasks, tables_of
from oral_ray.pipeline.own_tasks import task_of
from oral_ray.store.bases import BaseStore
from oral_ray.store.generators import METRICS, generator_manifest, promote_generator, put_generator
from oral_ray.store.shards import ShardManifest, corpus_rows, read_manifest

logger = logging.getLogger(__name__)
RECIPE_VERSION = 1
_OPERATIONAL = {
    "max_failures", "min_workers", "cpus_per_worker", "gpus_per_worker", "checkpoint_every", "checkpoint_upload",
    "cache_bytes", "activation_checkpointing",
}  # fmt: skip
_LATER = {"accumulation", "window_tokens"}  # at their default they name no recipe, so that older generators keep theirs
_METRICS_JSON = "metrics.json"


def recipe_of(config: Config, shards_fingerprint: str) -> str:
    """The fingerprint that names a generator: its corpus and every setting that changes the result."""
    later = {name for name in _LATER if getattr(config.training, name) == TrainingConfig.model_fields[name].default}
    training = config.training.model_dump(mode="json", exclude=_OPERATIONAL | later)
    generator = config.generator.model_dump(mode="json", exclude={"kernel"})
    further = [task_of(config, task_id).fingerprint for task_id in further_tasks(config)]
    return fingerprint(
        "generator", RECIPE_VERSION, shards_fingerprint, config.condition, generator, training, config.bases.dtype,
        config.seed, *([further, config.tasks.num_prompts] if further else []),
    )  # fmt: skip


def run(config: Config) -> str:
    """The recipe of the trained generator, made the current one of the configuration's name; trained where missing."""
    recipe = trained(config)
    promote_generator(open_objects(config.store), config.name, recipe)
    return recipe


def trained(config: Config) -> str:
    """The recipe of the generator; trains it, on Ray Train workers, where it is not there."""
    manifest = shards.run(config)
    recipe, objects = recipe_of(config, manifest.fingerprint), open_objects(config.store)
    if generator_manifest(objects, recipe) is None:
        cluster.run_workers(
            train_worker,
            {"config": config.model_dump(mode="json"), "shards": manifest.fingerprint},
            config.training,
            num_steps=config.training.steps + config.training.functional.steps,
            uris=[f"{objects.uri}/{key}" for key in manifest.keys],
            storage_uri=f"{objects.uri}/training",
            name=recipe,
            collect=lambda folder: _collect(objects, recipe, folder, manifest.fingerprint),
        )
    return recipe


def is_done(config: Config, shards_fingerprint: str) -> bool:
    """Whether the generator of this configuration is in the store."""
    return generator_manifest(open_objects(config.store), recipe_of(config, shards_fingerprint)) is not None


def regression_config(config: Config) -> Config:
    """The control of the `regression` arm: same network and data, one deterministic step, one plain torch worker."""
    generator = config.generator.model_copy(update={"objective": RegressionObjective()})
    training = config.training.model_copy(
        update={
            "engine": TorchEngine(),
            "num_workers": 1,
            "min_workers": None,
            "steps": config.evaluation.regression_steps,
            "functional": FunctionalPhase(),
        }
    )
    return config.model_copy(update={"generator": generator, "training": training})


def train_in_task(config: Config, shards_fingerprint: str) -> str:
    """Worker: train a generator in one process, without Ray Train (controls and small studies); returns its recipe."""
    objects = open_objects(config.store)
    recipe = recipe_of(config, shards_fingerprint)
    if is_done(config, shards_fingerprint):
        return recipe
    manifest = _require(objects, shards_fingerprint)

    def read() -> Iterable[dict[str, Any]]:
        for key in manifest.keys:
            yield from parse_table(objects.get(key)).to_pylist()

    def drop(row: MetricsRow, folder: Path | None) -> None:
        if folder is not None:
            shutil.rmtree(folder)

    def collect(folder: Path) -> None:
        _collect(objects, recipe, folder, shards_fingerprint)

    _train(config, manifest, read, 0, 1, None, drop, collect, cluster.device_of(config.cluster.gpus_per_task))
    return recipe


def train_worker(loop_config: dict[str, Any]) -> None:
    """Worker of a Ray Train run."""
    config = Config.model_validate(loop_config["config"])
    cluster.limit_threads(config.training.threads_per_worker, config.determinism)
    manifest = _require(open_objects(config.store), loop_config["shards"])
    rank, num_workers = cluster.worker_rank()
    with cluster.worker_checkpoint() as resume:
        _train(
            config,
            manifest,
            cluster.worker_rows,
            rank,
            num_workers,
            resume,
            lambda row, folder: cluster.worker_report(
                loop_config["board"], row.model_dump(), folder, config.training.checkpoint_upload
            ),
            lambda folder: None,
            cluster.device_of(config.training.gpus_per_worker),
        )


def _train(
    config: Config, manifest: ShardManifest, read: Callable[[], Iterable[dict[str, Any]]], rank: int, num_workers: int,
    resume: Path | None, report: Callable[[MetricsRow, Path | None], None], finish: Callable[[Path], None], device: str,
) -> None:  # fmt: skip
    objects = open_objects(config.store)
    encoder = ConditionEncoder(config.condition)
    base_store = BaseStore(objects, config.bases.prefix)
    bases = {base_id: base_store.record(base_id) for base_id in manifest.bases}
    tables, probe_stats = tables_of(config, objects, manifest, bases, encoder)
    spec = GeneratorSpec(
        generator=config.generator,
        condition=config.condition,
        token_dim=config.tokens.token_dim,
        num_tokens=_only_length(manifest) if config.generator.latent else 0,
        text_dim=encoder.text_dim,
        model_dim=encoder.model_dim,
        text_encoder_fingerprint=encoder.fingerprint,
        architectures=tuple(sorted({base.spec.digest for base in bases.values()})),
        recipe=recipe_of(config, manifest.fingerprint),
    )
    metrics: list[dict[str, Any]] = json.loads((resume / _METRICS_JSON).read_text()) if resume else []

    def rows() -> Iterable[CorpusRow]:
        return corpus_rows(read(), manifest.layouts)

    def save_network(state: dict[str, Tensor], folder: Path) -> None:
        network = build_network(spec, seed=0)
        network.load_state_dict(state, strict=True)
        save_generator(Generator(spec, network, tables.stats, probe_stats), folder)

    def on_report(row: MetricsRow, folder: Path | None) -> None:
        metrics.append(row.model_dump())
        if folder is not None:
            (folder / _METRICS_JSON).write_text(json.dumps(metrics))
            if row.step == num_steps:
                finish(folder)
        report(row, folder)

    phase = config.training.functional
    records = list(bases.values())
    functional = (
        functional_draw(config, objects, manifest, records, encoder, tables, probe_stats, device)
        if phase.steps
        else None
    )
    num_steps = config.training.steps + phase.steps
    if config.training.window_tokens and config.generator.latent:
        raise GeneratorError(
            "training.window_tokens cuts adapters, generator.latent knows whole ones only; leave one out"
        )
    seed = config.seed + config.training.seed
    network = build_network(spec, seed)
    train(
        network,
        tables,
        rows,
        config.training,
        drop_text_frac=config.condition.drop_text_frac,
        drop_model_frac=config.condition.drop_model_frac,
        seed=seed,
        rank=rank,
        num_workers=num_workers,
        resume=resume,
        report=on_report,
        save_network=save_network,
        functional_item=functional,
        device=device,
    )


def _only_length(manifest: ShardManifest) -> int:
    lengths = {layout.num_tokens for layout in manifest.layouts.values()}
    if len(lengths) > 1:
        raise GeneratorError(
            f"generator.latent (Cond P-Diff) knows one length of adapter, the corpus has {sorted(lengths)}; train one "
            "generator for each, or take the per-token one"
        )
    return lengths.pop()


def _collect(objects: Objects, recipe: str, folder: Path, corpus: str) -> None:
    metrics = json.loads((folder / _METRICS_JSON).read_text())
    pq.write_table(pa.Table.from_pylist(metrics), folder / METRICS)
    put_generator(objects, recipe, folder, corpus)


def _require(objects: Objects, shards_fingerprint: str) -> ShardManifest:
    manifest = read_manifest(objects, shards_fingerprint)
    if manifest is None:
        raise StoreError(f"shards {shards_fingerprint} are not in {objects.uri}; run jobs/shards.py")
    return manifest
