"""Cond P-Diff (arXiv 2408.01415, figure 2) beside ours: quality and memory against the number of generated parameters.

Every corpus in a store whose adapters have one layout, smallest first; both learn it with the same rows, conditions, number
of steps, batch and learning rate. The baseline flattens an adapter and so holds all of it at once; ours trains on windows
of tokens and samples in pieces. Each training has a process of its own, with `memory_gb` beside the corpus: what does not
fit says so in its row. `error` is that of sampled against held-out adapters in normalised values, as in `heads`: 1
is what zero would have.

    python infra/dev/bench latent store=./oral-store --json out/bench/latent.json
"""

import resource
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context

import psutil
import torch
from dev.bench.heads import Trained, read_corpus, sampled, train_head, typical_error
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from oral_ray.bench.harness import BenchOptions, Exponent, Result, Row, fit_exponent, with_peak_memory
from oral_ray.config import LatentConfig, SamplingConfig, load_config
from oral_ray.errors import ConfigError
from oral_ray.generator.data import Batch
from oral_ray.generator.network import Network
from oral_ray.generator.pieces import Piece, sample_pieces
from oral_ray.objects import open_objects
from oral_ray.store.shards import list_manifests

OURS, LATENT = "ours", "Cond P-Diff"


class Options(BenchOptions):
    """`store` holds the corpora, `config` says everything else; `shards` are the ones to learn (all), as a row names them.

    `window_tokens` is for ours. `latent_steps` are the baseline's sampling steps: it needs more than ours, which is trained
    mostly where noise is high.
    """

    store: str = "./oral-store"
    config: str = "quickstart"
    shards: tuple[str, ...] = ()
    steps: PositiveInt = 100
    batch_size: PositiveInt = 4
    held_out_frac: float = Field(0.2, gt=0, lt=1)
    num_errors: PositiveInt = 4
    window_tokens: PositiveInt = 512
    latent_steps: PositiveInt = 50
    memory_gb: PositiveFloat = 8.0


def run(options: Options) -> Result:
    """A row a corpus and generator; exponents of seconds and memory of those that finished."""
    objects = open_objects(options.store)
    found = [manifest for manifest in list_manifests(objects) if len(manifest.layouts) == 1]
    sizes = {manifest.fingerprint: next(iter(manifest.layouts.values())).num_parameters for manifest in found}
    if not sizes:
        raise ConfigError(f"no corpus of one layout in {objects.uri}; run jobs/shards.py with a lora.r or two first")
    names = {fingerprint[:12]: fingerprint for fingerprint in sizes}
    if unknown := sorted(set(options.shards) - set(names)):
        raise ConfigError(f"no corpus of one layout {unknown} in {objects.uri}; there are {', '.join(sorted(names))}")
    chosen = [names[name] for name in options.shards or names]
    rows: list[Row] = []
    for shards in sorted(chosen, key=lambda name: (sizes[name], name)):
        for what in (OURS, LATENT):
            about: Row = {"what": what, "parameters": sizes[shards], "shards": shards[:12], "steps": options.steps}
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                try:
                    rows.append(about | pool.submit(measure, options, shards, what).result())
                except BrokenProcessPool:
                    rows.append(about | {"outcome": "killed"})
    return Result(rows=tuple(rows), exponents=tuple(_fits(rows)))


def measure(options: Options, shards: str, what: str) -> Row:
    """In a process of its own: train on a corpus, sample what was held out."""
    config = load_config(options.config, [f"store.uri={options.store}"])
    corpus = read_corpus(config, shards, options.held_out_frac)  # both hold it, so the limit is for what comes on top
    limit = int(psutil.Process().memory_info().vms + options.memory_gb * 1e9)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    head, window, sampling = config.generator, options.window_tokens, config.sampling
    sample = partial(_sampled_in_pieces, piece_tokens=window)
    if what == LATENT:
        head, window, sample = LatentConfig(), None, sampled
        sampling = sampling.model_copy(update={"num_steps": options.latent_steps})

    def done() -> tuple[Trained, float]:
        trained = train_head(head, corpus, config, options.steps, options.batch_size, options.held_out_frac, window)
        return trained, typical_error(corpus.batches(options.num_errors), partial(sample, trained, sampling=sampling))

    try:
        (trained, error), peak_bytes = with_peak_memory(done)
    except (MemoryError, RuntimeError) as failure:  # torch says it by a RuntimeError
        if isinstance(failure, RuntimeError) and "memory" not in str(failure):
            raise
        return {"outcome": f"does not fit in {options.memory_gb:g} GB"}
    return {
        "outcome": "done",
        "seconds": trained.seconds / options.steps,
        "peak_mb": peak_bytes / 1e6,
        "generator_parameters": sum(p.numel() for p in trained.network.parameters()),
        "loss": trained.log.validation_loss,
        "error": error,
        "held_out": len(corpus.held_out),
        "tokens": next(iter(corpus.tables.layouts.values())).num_tokens,
    }


def _sampled_in_pieces(trained: Trained, batch: Batch, sampling: SamplingConfig, piece_tokens: int) -> Tensor:
    """What `sampled` gives for one adapter, as `AdapterFactory` makes a large one: in memory of a piece."""
    assert isinstance(trained.network, Network)
    whole = (batch.position_BLP[0], batch.mask_BLD[0], batch.noise_BLD[0])
    pieces = map(Piece, *(rows.split(piece_tokens) for rows in whole))
    return torch.cat(list(sample_pieces(trained.network, pieces, batch.text_BE, batch.model_BG, sampling)))[None]


def _fits(rows: Sequence[Row]) -> Iterator[Exponent]:
    for what in (OURS, LATENT):
        for name, label in (("seconds", "seconds a step"), ("peak_mb", "peak memory")):
            points = [(row["parameters"], row[name]) for row in rows if row["what"] == what and row.get(name)]
            if len({size for size, _ in points}) > 1:
                x, y = ([float(value or 0) for value in values] for values in zip(*points, strict=True))
                yield fit_exponent(f"{what}: {label}", x, y)
