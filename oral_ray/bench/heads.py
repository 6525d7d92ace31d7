"""Our head, the regression head and RPG's trained alike on one corpus of real adapters: held-out loss beside time.

Same rows, batches, noise, steps, learning rate and conditions (`generator.training.train`); RPG's differs in what makes it
RPG's: convolutions along a token, a recurrence as wide as a token, and the number of its sampling steps. `loss` is the
training objective on held-out adapters (the same prediction for both diffusion heads), `error` the mean squared difference
between a sampled adapter and the held-out one of its condition, in normalised values: 1 is what zero would have.

    oral-ray bench heads store=./oral-store --json out/bench/heads.json
"""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import PositiveInt
from torch import Tensor

from oral_ray.bench.harness import BenchOptions, Result, Row, compare
from oral_ray.config import (
    Config,
    FunctionalPhase,
    GeneratorConfig,
    RegressionObjective,
    TorchEngine,
    TrainingConfig,
    derive_seed,
    load_config,
)
from oral_ray.errors import ConfigError
from oral_ray.generator.condition import ConditionEncoder
from oral_ray.generator.data import Batch, CorpusRow, CorpusTables, is_held_out, make_batch
from oral_ray.generator.diffusion import masked_mse
from oral_ray.generator.model import build_network
from oral_ray.generator.network import Network
from oral_ray.generator.spec import GeneratorSpec
from oral_ray.generator.training import MetricsRow, train
from oral_ray.objects import Objects, open_objects
from oral_ray.stages.material import tables_of
from oral_ray.store.bases import BaseShelf
from oral_ray.store.shards import ShardManifest, corpus_rows, read_manifest

OURS, REGRESSION, RPG = "ours", "regression head, one pass", "RPG's head"


class Options(BenchOptions):
    """`store` is that of a finished run of `config`; its newest shards are read unless `shards` names others."""

    repetitions: PositiveInt = 3
    store: str = "./oral-store"
    config: str = "infra/configs/quickstart.toml"
    shards: str = ""
    steps: PositiveInt = 100
    batch_size: PositiveInt = 4
    held_out_frac: float = 0.2
    num_errors: PositiveInt = 6
    rpg_steps: PositiveInt = 60


@dataclass(frozen=True, slots=True)
class Trained:
    """A network with the moving average of its weights, its last row of the log and how long it took."""

    network: Network
    log: MetricsRow
    seconds: float


def run(options: Options) -> Result:
    """A row a head and number of sampling steps; the ratio is to ours, a generated parameter."""
    config = load_config(options.config, [f"store.uri={options.store}"])
    objects = open_objects(config.store)
    manifest = _manifest(objects, options.shards)
    encoder = ConditionEncoder(config.condition)
    shelf = BaseShelf(objects, config.bases.prefix)
    tables, _ = tables_of(config, objects, manifest, {base: shelf.record(base) for base in manifest.bases}, encoder)
    rows = [
        row
        for key in manifest.keys
        for row in corpus_rows(pq.read_table(pa.BufferReader(objects.get(key))).to_pylist(), manifest.layouts)
    ]
    token_dim = rows[0].tokens_LD.shape[1]
    ours = config.generator
    heads = {
        OURS: ours,
        REGRESSION: ours.model_copy(update={"objective": RegressionObjective()}),
        RPG: ours.model_copy(update={"denoiser": "conv", "width": token_dim}),
    }
    trained = {what: _train(head, rows, tables, options, config, encoder) for what, head in heads.items()}
    steps = {
        OURS: (OURS, config.sampling.num_steps), REGRESSION: (REGRESSION, 1), RPG: (RPG, options.rpg_steps),
        f"{RPG} at our number of steps": (RPG, config.sampling.num_steps),
    }  # fmt: skip
    held_out = sorted((r for r in rows if is_held_out(r.digest, options.held_out_frac)), key=lambda row: row.digest)
    return Result(rows=tuple(_rows(options, config, trained, steps, held_out, tables)))


def _train(
    head: GeneratorConfig, rows: list[CorpusRow], tables: CorpusTables, options: Options, config: Config,
    encoder: ConditionEncoder,
) -> Trained:  # fmt: skip
    spec = GeneratorSpec(
        generator=head, condition=config.condition, token_dim=rows[0].tokens_LD.shape[1], text_dim=encoder.text_dim,
        model_dim=encoder.model_dim, text_encoder_fingerprint=encoder.fingerprint, architectures=(), recipe="bench",
    )  # fmt: skip
    network = build_network(spec, config.seed)
    assert isinstance(network, Network)
    given = config.training.model_dump() | {
        "engine": TorchEngine(), "num_workers": 1, "steps": options.steps, "batch_size": options.batch_size,
        "validation_frac": options.held_out_frac, "validate_every": options.steps, "checkpoint_every": options.steps,
        "functional": FunctionalPhase(),
    }  # fmt: skip
    logs: list[MetricsRow] = []

    def report(row: MetricsRow, folder: Path | None) -> None:
        logs.append(row)
        if folder is not None:
            shutil.rmtree(folder)

    averaged: dict[str, Tensor] = {}
    started = time.perf_counter()
    train(
        network, tables, lambda: rows, TrainingConfig.model_validate(given),
        drop_text_frac=config.condition.drop_text_frac, drop_model_frac=config.condition.drop_model_frac,
        seed=config.seed, rank=0, num_workers=1, resume=None, report=report,
        save_network=lambda state, folder: averaged.update(state),
    )  # fmt: skip
    seconds = time.perf_counter() - started
    network.load_state_dict(averaged, strict=True)
    return Trained(network.eval(), logs[-1], seconds)


def _rows(
    options: Options, config: Config, trained: dict[str, Trained], steps: dict[str, tuple[str, int]],
    held_out: list[CorpusRow], tables: CorpusTables,
) -> list[Row]:  # fmt: skip
    batches = [make_batch([row], tables, 0.0, 0.0, 1.0, derive_seed(0, row.digest)) for row in held_out]
    num_parameters = int(batches[0].mask_BLD.sum())

    def sampled(what: str, batch: Batch) -> Tensor:
        head, num_steps = steps[what]
        sampling = config.sampling.model_copy(update={"num_steps": num_steps})
        return trained[head].network.sample(
            batch.position_BLP, batch.mask_BLD, batch.text_BE, batch.model_BG, lambda: batch.noise_BLD, sampling
        )

    timed = compare({what: lambda w=what: sampled(w, batches[0]) for what in steps}, options.repetitions)
    found: list[Row] = []
    for row in timed:
        what = str(row["what"])
        head, num_steps = steps[what]
        errors = [float(masked_mse(sampled(what, b), b.x0_BLD, b.mask_BLD)) for b in batches[: options.num_errors]]
        done = trained[head]
        found.append(row | {
            "ns_per_parameter": float(row["seconds"] or 0) / num_parameters * 1e9,
            "sampling_steps": num_steps,
            "generator_parameters": sum(p.numel() for p in done.network.parameters()),
            "training_steps": done.log.step,
            "training_s": done.seconds,
            "loss": None if head == REGRESSION else done.log.validation_loss,
            "error": sum(errors) / len(errors),
            "held_out": len(held_out),
            "errors_of": len(errors),
            "tokens": batches[0].x0_BLD.shape[1],
        })  # fmt: skip
    return found


def _manifest(objects: Objects, fingerprint: str) -> ShardManifest:
    ends = "/manifest.json"
    found = {i.key.split("/")[1]: i.modified_s for i in objects.list("shards/") if i.key.endswith(ends)}
    chosen = fingerprint or max(found, key=lambda name: found[name], default="")
    manifest = read_manifest(objects, chosen) if chosen else None
    if manifest is None:
        raise ConfigError(f"no shards {chosen or 'at all'} in {objects.uri}; there are {', '.join(found) or 'none'}")
    return manifest
