"""Our head, the regression head and RPG's trained alike on one corpus of real adapters: held-out loss beside time.

Same rows, batches, noise, steps, learning rate and conditions (`generator.training.train`); RPG's differs in what makes it
RPG's: convolutions along a token, a recurrence as wide as a token, and the number of its sampling steps. `loss` is the
training objective on held-out adapters (the same prediction for both diffusion heads), `error` the mean squared difference
between a sampled adapter and the held-out one of its condition, in normalised values: 1 is what zero would have.

    python infra/dev/bench heads store=./oral-store --json out/bench/heads.json
"""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean

from pydantic import Field, PositiveInt
from torch import Tensor

from oral_ray.bench.harness import BenchOptions, Result, Row, compare
from oral_ray.config import (
    Config,
    ConvDenoiserConfig,
    FunctionalPhase,
    GeneratorConfig,
    LatentConfig,
    RegressionObjective,
    SamplingConfig,
    TorchEngine,
    TrainingConfig,
    derive_seed,
    load_config,
)
from oral_ray.errors import ConfigError
from oral_ray.generator.condition import ConditionEncoder
from oral_ray.generator.data import Batch, CorpusRow, CorpusTables, is_held_out, make_batch
from oral_ray.generator.diffusion import masked_mse
from oral_ray.generator.model import AnyNetwork, build_network
from oral_ray.generator.spec import GeneratorSpec
from oral_ray.generator.training import MetricsRow, TrainingLoop
from oral_ray.objects import Objects
from oral_ray.pipeline.material import tables_of
from oral_ray.pipeline.run import open_run
from oral_ray.store.shards import ShardManifest, corpus_rows, list_manifests, shard_records

OURS, REGRESSION, RPG = "ours", "regression head, one pass", "RPG's head"


class Options(BenchOptions):
    """`store` is that of a finished run of `config`; its newest shards are read unless `shards` names others."""

    repetitions: PositiveInt = 3
    store: str = "./oral-store"
    config: str = "quickstart"
    shards: str = ""
    steps: PositiveInt = 100
    batch_size: PositiveInt = 4
    held_out_frac: float = Field(0.2, gt=0, lt=1)
    num_errors: PositiveInt = 6
    rpg_steps: PositiveInt = 60


@dataclass(frozen=True, slots=True)
class Corpus:
    """The rows of a store's shards, those that no head learns from, and what they refer to."""

    rows: list[CorpusRow]
    held_out: list[CorpusRow]
    tables: CorpusTables
    encoder: ConditionEncoder

    def batches(self, num: int) -> Iterator[Batch]:
        """A batch of each of the first `num` held-out rows, with noise of its own."""
        for row in self.held_out[:num]:
            yield make_batch([row], self.tables, 0.0, 0.0, 1.0, derive_seed(0, row.digest))


@dataclass(frozen=True, slots=True)
class Trained:
    """A network with the moving average of its weights, its last row of the log and how long it took."""

    network: AnyNetwork
    log: MetricsRow
    seconds: float


def run(options: Options) -> Result:
    """A row a head and number of sampling steps; the ratio is to ours, a generated parameter."""
    config = load_config(options.config, [f"store.uri={options.store}"])
    corpus = read_corpus(config, options.shards, options.held_out_frac)
    ours = config.generator
    heads = {
        OURS: ours,
        REGRESSION: ours.model_copy(update={"objective": RegressionObjective()}),
        RPG: ours.model_copy(update={"denoiser": ConvDenoiserConfig(), "width": corpus.rows[0].tokens_LD.shape[1]}),
    }
    trained = {
        what: train_head(head, corpus, config, options.steps, options.batch_size, options.held_out_frac)
        for what, head in heads.items()
    }
    steps = {
        OURS: (OURS, config.sampling.num_steps), REGRESSION: (REGRESSION, 1), RPG: (RPG, options.rpg_steps),
        f"{RPG} at our number of steps": (RPG, config.sampling.num_steps),
    }  # fmt: skip
    return Result(rows=tuple(_rows(options, config, trained, steps, corpus)))


def read_corpus(config: Config, shards: str, held_out_frac: float) -> Corpus:
    """The corpus of the store's shards of this fingerprint, of the newest where it is empty."""
    run = open_run(config)
    manifest, encoder = _manifest(run.objects, shards), ConditionEncoder(config.condition)
    tables, _ = tables_of(run, manifest, {base: run.base_store.record(base) for base in manifest.bases}, encoder)
    rows = list(corpus_rows(shard_records(run.objects, manifest), manifest.layouts))
    held_out = sorted((row for row in rows if is_held_out(row.digest, held_out_frac)), key=lambda row: row.digest)
    if not held_out:
        raise ConfigError(
            f"none of the {len(rows)} adapters of shards {manifest.fingerprint[:12]} is held out; raise held_out_frac"
        )
    return Corpus(rows, held_out, tables, encoder)


def train_head(
    head: GeneratorConfig | LatentConfig, corpus: Corpus, config: Config, steps: int, batch_size: int, held_out_frac: float,
    window_tokens: int | None = None,
) -> Trained:  # fmt: skip
    """Train a head on what is not held out, on the diffusion or regression loss alone, in this process."""
    num_tokens, token_dim = corpus.rows[0].tokens_LD.shape
    encoder = corpus.encoder
    spec = GeneratorSpec(
        generator=head, condition=config.condition, token_dim=token_dim,
        num_tokens=num_tokens if isinstance(head, LatentConfig) else 0,
        text_dim=encoder.text_dim, model_dim=encoder.model_dim, text_encoder_fingerprint=encoder.fingerprint,
        architectures=(), recipe="bench",
    )  # fmt: skip
    network = build_network(spec, config.seed)
    given = config.training.model_dump() | {
        "engine": TorchEngine(), "num_workers": 1, "steps": steps, "batch_size": batch_size,
        "validation_frac": held_out_frac, "validate_every": steps, "checkpoint_every": steps,
        "functional": FunctionalPhase(), "window_tokens": window_tokens,
    }  # fmt: skip
    logs: list[MetricsRow] = []

    def report(row: MetricsRow, folder: Path | None) -> None:
        logs.append(row)
        if folder is not None:
            shutil.rmtree(folder)

    averaged: dict[str, Tensor] = {}
    started = time.perf_counter()
    TrainingLoop(
        network, corpus.tables, lambda: corpus.rows, TrainingConfig.model_validate(given),
        drop_text_frac=config.condition.drop_text_frac, drop_model_frac=config.condition.drop_model_frac,
        seed=config.seed, rank=0, num_workers=1, resume=None, report=report,
        save_network=lambda state, folder: averaged.update(state),
    ).run()  # fmt: skip
    seconds = time.perf_counter() - started
    network.load_state_dict(averaged, strict=True)
    return Trained(network.eval(), logs[-1], seconds)


def sampled(trained: Trained, batch: Batch, sampling: SamplingConfig) -> Tensor:
    """Normalised tokens for the conditions of a batch, from its noise."""
    return trained.network.sample(
        batch.position_BLP, batch.mask_BLD, batch.text_BE, batch.model_BG, lambda: batch.noise_BLD, sampling
    )


def typical_error(batches: Iterable[Batch], sample: Callable[[Batch], Tensor]) -> float:
    """The mean over batches of the squared difference between what is sampled and what was held out."""
    return mean(float(masked_mse(sample(batch), batch.x0_BLD, batch.mask_BLD)) for batch in batches)


def _rows(
    options: Options, config: Config, trained: dict[str, Trained], steps: dict[str, tuple[str, int]], corpus: Corpus
) -> list[Row]:
    batches = list(corpus.batches(options.num_errors))
    num_parameters = int(batches[0].mask_BLD.sum())
    samplings = {what: config.sampling.model_copy(update={"num_steps": n}) for what, (_, n) in steps.items()}
    calls = {what: lambda w=what: sampled(trained[steps[w][0]], batches[0], samplings[w]) for what in steps}
    found: list[Row] = []
    for row in compare(calls, options.repetitions):
        what = str(row["what"])
        head, num_steps = steps[what]
        done = trained[head]
        found.append(row | {
            "ns_per_parameter": float(row["seconds"] or 0) / num_parameters * 1e9,
            "sampling_steps": num_steps,
            "generator_parameters": sum(p.numel() for p in done.network.parameters()),
            "training_steps": done.log.step,
            "training_s": done.seconds,
            "loss": None if head == REGRESSION else done.log.validation_loss,
            "error": typical_error(batches, partial(sampled, done, sampling=samplings[what])),
            "held_out": len(corpus.held_out),
            "errors_of": len(batches),
            "tokens": batches[0].x0_BLD.shape[1],
        })  # fmt: skip
    return found


def _manifest(objects: Objects, fingerprint: str) -> ShardManifest:
    found = {manifest.fingerprint: manifest for manifest in list_manifests(objects)}
    if not found or fingerprint not in ("", *found):
        known = ", ".join(found) or "none, make some by jobs/shards.py with this store"
        raise ConfigError(f"no shards {fingerprint or 'at all'} in {objects.uri}; there are {known}")
    return found[fingerprint] if fingerprint else [*found.values()][-1]
