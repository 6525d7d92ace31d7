"""Stage 3: train the generator on the shards with Ray Train; weights and metrics go to `generators/<recipe>/`.

Checkpoints of the run lie under `training/<recipe>/` and are what a lost worker, or the same command run again, resumes
from.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from oral_ray.cluster import device_of, limit_threads
from oral_ray.config import (
    Config,
    FunctionalPhase,
    LatentConfig,
    RegressionObjective,
    TorchEngine,
    fingerprint,
)
from oral_ray.errors import GeneratorError
from oral_ray.generator.condition import ConditionEncoder
from oral_ray.generator.data import CorpusRow
from oral_ray.generator.model import Generator, build_network, save_generator
from oral_ray.generator.spec import GeneratorSpec
from oral_ray.generator.training import MetricsRow, TrainingLoop
from oral_ray.objects import Objects
from oral_ray.pipeline.material import auxiliary_tasks, functional_draw, tables_of
from oral_ray.pipeline.run import Run, open_run
from oral_ray.pipeline.shards import require_manifest
from oral_ray.store.generators import METRICS, generator_manifest, promote_generator, put_generator
from oral_ray.store.shards import ShardManifest, corpus_rows, shard_records

logger = logging.getLogger(__name__)
RECIPE_VERSION = 2
_OPERATIONAL = {
    "max_failures", "min_workers", "cpus_per_worker", "gpus_per_worker", "checkpoint_every", "checkpoint_upload",
    "cache_bytes", "activation_checkpointing",
}  # fmt: skip
_METRICS_JSON = "metrics.json"


def recipe_of(run: Run, shards_fingerprint: str) -> str:
    """The fingerprint that names a generator: its corpus and every setting that changes the result."""
    config = run.config
    training = config.training.model_dump(mode="json", exclude=_OPERATIONAL)
    generator = config.generator.model_dump(mode="json", exclude={"kernel"})
    auxiliary = [run.task(task_id).fingerprint for task_id in auxiliary_tasks(run)]
    return fingerprint(
        "generator", RECIPE_VERSION, shards_fingerprint, config.condition, generator, training, config.bases.dtype,
        config.seed, auxiliary, config.tasks.num_prompts,
    )  # fmt: skip


def train_generator(run: Run, manifest: ShardManifest) -> str:
    """The recipe of the generator of these shards; it is trained, on Ray Train workers, where it is not there."""
    recipe, objects, training = recipe_of(run, manifest.fingerprint), run.objects, run.config.training
    if generator_manifest(objects, recipe) is None:
        from oral_ray.cluster.training import run_workers  # it imports Ray Train

        run_workers(
            train_worker,
            {"config": run.config.model_dump(mode="json"), "shards": manifest.fingerprint},
            training,
            num_steps=training.steps + training.functional.steps,
            uris=[f"{objects.uri}/{key}" for key in manifest.keys],
            storage_uri=f"{objects.uri}/training",
            name=recipe,
            collect=lambda folder: _collect(objects, recipe, folder, manifest.fingerprint),
        )
    return recipe


def promote(run: Run, recipe: str) -> None:
    """Make a generator the current one of the configuration's name, which the service loads."""
    promote_generator(run.objects, run.config.name, recipe)


def is_trained(run: Run, shards_fingerprint: str) -> bool:
    """Whether the generator of this run's configuration is in the store."""
    return generator_manifest(run.objects, recipe_of(run, shards_fingerprint)) is not None


def with_seed(run: Run, seed: int) -> Run:
    """The run whose generator has another seed: `seed` more than the configured one."""
    training = run.config.training.model_copy(update={"seed": run.config.training.seed + seed})
    return run.over(run.config.model_copy(update={"training": training}))


def regression_run(run: Run) -> Run:
    """The control of the `regression` arm: same network and data, one deterministic step, one plain torch worker."""
    config = run.config
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
    return run.over(config.model_copy(update={"generator": generator, "training": training}))


def train_in_task(config: Config, shards_fingerprint: str) -> str:
    """Worker: train a generator in one process, without Ray Train (controls and small studies); returns its recipe."""
    run = open_run(config)
    recipe = recipe_of(run, shards_fingerprint)
    if is_trained(run, shards_fingerprint):
        return recipe
    manifest = require_manifest(run.objects, shards_fingerprint)

    def drop(row: MetricsRow, folder: Path | None) -> None:
        if folder is not None:
            shutil.rmtree(folder)

    def collect(folder: Path) -> None:
        _collect(run.objects, recipe, folder, shards_fingerprint)

    place = _Place(device=run.device, read=lambda: shard_records(run.objects, manifest), report=drop, finish=collect)
    _train(run, manifest, place)
    return recipe


def train_worker(loop_config: dict[str, Any]) -> None:
    """Worker of a Ray Train run."""
    from oral_ray.cluster.training import worker_checkpoint, worker_rank, worker_report, worker_rows

    config = Config.model_validate(loop_config["config"])
    training = config.training
    limit_threads(training.threads_per_worker, config.determinism)
    run = open_run(config)
    manifest = require_manifest(run.objects, loop_config["shards"])
    rank, num_workers = worker_rank()

    def report(row: MetricsRow, folder: Path | None) -> None:
        worker_report(loop_config["board"], row.model_dump(), folder, training.checkpoint_upload)

    with worker_checkpoint() as resume:
        device = device_of(training.gpus_per_worker)
        _train(run, manifest, _Place(device, worker_rows, report, rank=rank, num_workers=num_workers, resume=resume))


@dataclass(frozen=True)
class _Place:
    """Where a generator is trained: on which device, by which of how many workers, from which checkpoint (None: none).

    `read` makes one pass over the worker's rows, `report` takes every row of metrics, with a folder where there is a
    checkpoint; `finish` takes the last one before that.
    """

    device: str
    read: Callable[[], Iterable[dict[str, Any]]]
    report: Callable[[MetricsRow, Path | None], None]
    finish: Callable[[Path], None] = lambda folder: None
    rank: int = 0
    num_workers: int = 1
    resume: Path | None = None


def _train(run: Run, manifest: ShardManifest, place: _Place) -> None:
    config, resume = run.config, place.resume
    encoder = ConditionEncoder(config.condition)
    bases = {base_id: run.base_store.record(base_id) for base_id in manifest.bases}
    tables, probe_stats = tables_of(run, manifest, bases, encoder)
    spec = GeneratorSpec(
        generator=config.generator,
        condition=config.condition,
        token_dim=config.tokens.token_dim,
        num_tokens=_only_length(manifest) if isinstance(config.generator, LatentConfig) else 0,
        text_dim=encoder.text_dim,
        model_dim=encoder.model_dim,
        text_encoder_fingerprint=encoder.fingerprint,
        architectures=tuple(sorted({base.spec.digest for base in bases.values()})),
        recipe=recipe_of(run, manifest.fingerprint),
    )
    metrics: list[dict[str, Any]] = json.loads((resume / _METRICS_JSON).read_text()) if resume else []

    def rows() -> Iterable[CorpusRow]:
        return corpus_rows(place.read(), manifest.layouts)

    def save_network(state: dict[str, Tensor], folder: Path) -> None:
        network = build_network(spec, seed=0)
        network.load_state_dict(state, strict=True)
        save_generator(Generator(spec, network, tables.stats, probe_stats), folder)

    def on_report(row: MetricsRow, folder: Path | None) -> None:
        metrics.append(row.model_dump())
        if folder is not None:
            (folder / _METRICS_JSON).write_text(json.dumps(metrics))
            if row.step == num_steps:
                place.finish(folder)
        place.report(row, folder)

    phase = config.training.functional
    functional = None
    if phase.steps:
        functional = functional_draw(run, manifest, bases, encoder, tables, probe_stats, place.device)
    num_steps = config.training.steps + phase.steps
    seed = config.seed + config.training.seed
    network = build_network(spec, seed)
    TrainingLoop(
        network,
        tables,
        rows,
        config.training,
        drop_text_frac=config.condition.drop_text_frac,
        drop_model_frac=config.condition.drop_model_frac,
        seed=seed,
        rank=place.rank,
        num_workers=place.num_workers,
        resume=resume,
        report=on_report,
        save_network=save_network,
        functional_item=functional,
        device=place.device,
    ).run()


def _only_length(manifest: ShardManifest) -> int:
    lengths = {layout.num_tokens for layout in manifest.layouts.values()}
    if len(lengths) > 1:
        raise GeneratorError(
            f"a generator of kind latent knows one length of adapter, the corpus has {sorted(lengths)}; train one for "
            "each, or set generator.kind=tokens"
        )
    return lengths.pop()


def _collect(objects: Objects, recipe: str, folder: Path, corpus: str) -> None:
    metrics = json.loads((folder / _METRICS_JSON).read_text())
    pq.write_table(pa.Table.from_pylist(metrics), folder / METRICS)
    put_generator(objects, recipe, folder, corpus)
