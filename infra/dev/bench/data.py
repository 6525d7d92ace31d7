"""The way of the corpus into a step: a pass over the shards with Ray Data and without, batches from memory and streamed,
and what one batch costs, whole and in windows. `store=s3://bucket/prefix` measures against that store.
"""

import itertools
import pickle
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa
from pydantic import PositiveInt

from oral_ray import cluster
from oral_ray.adapters.tokens import TokenMoments
from oral_ray.bench.harness import BenchOptions, Result, Row, compare, fit_exponent
from oral_ray.bench.runs import Shape, build_corpus, tables
from oral_ray.cluster.data import fold_parquet
from oral_ray.config import ClusterConfig, TrainingConfig
from oral_ray.generator.data import CorpusRow, RowSource, make_batch
from oral_ray.local.parquet import parse_table
from oral_ray.objects import Objects, open_objects
from oral_ray.store.shards import ShardManifest, corpus_rows


class Options(BenchOptions):
    """`sizes` are numbers of adapters in a corpus, in files of 16."""

    shape: Shape = Shape()
    sizes: tuple[PositiveInt, ...] = (64, 256, 1024)
    batch_size: PositiveInt = 16
    store: str = ""
    repetitions: PositiveInt = 3


def run(options: Options) -> Result:
    """Passes over corpora of growing size, then batches from the largest one that a worker would hold."""
    with tempfile.TemporaryDirectory(prefix="oral-bench-") as folder:
        uri = options.store or f"file://{folder}/store"
        objects = open_objects(uri)
        corpora = {n: build_corpus(uri, options.shape, n, num_files=-(-n // 16)) for n in options.sizes}
        with cluster.session(ClusterConfig(), determinism=False):
            passes = compare(
                {f"{n} adapters, Ray Data": _ray_pass(uri, m) for n, m in corpora.items()}, options.repetitions
            )
        plain = compare({f"{n} adapters, pyarrow": _pass(objects, m) for n, m in corpora.items()}, options.repetitions)
        floors = compare(
            {f"{n} adapters, bytes only": _bytes(objects, m) for n, m in corpora.items()}, options.repetitions
        )
        batches = compare(_batches(options, objects, uri, corpora[options.sizes[0]]), options.repetitions)
    layout = options.shape.layout()
    counts = list(options.sizes)
    return Result(
        rows=tuple(_rated(row, n, layout.num_bytes) for row, n in zip(passes, counts, strict=True))
        + tuple(_rated(row, options.batch_size, layout.num_bytes) for row in batches),
        peers=tuple(_rated(row, n, layout.num_bytes) for row, n in zip(plain, counts, strict=True)),
        floors=tuple(_rated(row, n, layout.num_bytes) for row, n in zip(floors, counts, strict=True)),
        exponents=tuple(
            fit_exponent(f"seconds of adapters, {what}", counts, [float(row["seconds"]) for row in part])  # type: ignore[arg-type]
            for what, part in (("Ray Data", passes), ("pyarrow", plain))
        ),
    )


def _rated(row: Row, num_adapters: int, num_bytes: int) -> Row:
    return {**row, "adapters": num_adapters, "mb_per_s": num_adapters * num_bytes / 1e6 / float(row["seconds"])}  # type: ignore[arg-type]


def _ray_pass(uri: str, manifest: ShardManifest) -> Callable[[], object]:
    """The pass that the stage `shards` makes for the statistics: every value of every adapter, where the blocks are."""

    def measure(table: pa.Table) -> bytes:
        moments = TokenMoments()
        for row in corpus_rows(table.to_pylist(), manifest.layouts):
            moments.add(manifest.layouts[row.layout], row.tokens_LD)
        return pickle.dumps(moments)

    return lambda: fold_parquet([f"{uri}/{key}" for key in manifest.keys], measure)


def _pass(objects: Objects, manifest: ShardManifest) -> Callable[[], object]:
    def measure() -> None:
        moments = TokenMoments()
        for row in _read(objects, manifest):
            moments.add(manifest.layouts[row.layout], row.tokens_LD)

    return measure


def _bytes(objects: Objects, manifest: ShardManifest) -> Callable[[], object]:
    return lambda: [len(objects.get(key)) for key in manifest.keys]


def _read(objects: Objects, manifest: ShardManifest) -> Iterable[CorpusRow]:
    for key in manifest.keys:
        yield from corpus_rows(parse_table(objects.get(key)).to_pylist(), manifest.layouts)


def _batches(options: Options, objects: Objects, uri: str, manifest: ShardManifest) -> dict[str, Callable[[], Any]]:
    about, size = tables(manifest, uri), options.batch_size
    quarter = -(-options.shape.layout().num_tokens // 4)
    share = manifest.num_rows * options.shape.layout().num_bytes

    def source(cache_bytes: int) -> Iterable[list[CorpusRow]]:
        training = TrainingConfig(cache_bytes=cache_bytes, validation_frac=0.0)
        return RowSource(lambda: _read(objects, manifest), training).batches(size, 0, 0)

    memory, streamed, fixed = iter(source(10 * share)), iter(source(share // 4)), next(iter(source(10 * share)))
    seeds = itertools.count()
    return {
        "rows of a batch, from memory": lambda: next(memory),
        "rows of a batch, streamed in pools of a quarter": lambda: next(streamed),
        "a batch of them, whole adapters": lambda: make_batch(fixed, about, 0.1, 0.1, 4.0, next(seeds)),
        "a batch of them, windows of a quarter": lambda: make_batch(fixed, about, 0.1, 0.1, 4.0, next(seeds), quarter),
    }
