"""A training run on a corpus that nobody had to train: random adapters of one layout as shards in a store.

What a step, a wait, a checkpoint and a lost worker cost does not depend on what the adapters hold; so these runs need no
base model. The run itself is the real one: Ray Train, Ray Data from the store's Parquet files, checkpoints in the store.

    manifest = build_corpus(uri, Shape(), num_rows=64, num_files=4)
    curve = run_training(Job(store=uri, shards=manifest.fingerprint, training=training), name="torch")
"""

import json
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import PositiveInt
from safetensors.torch import save_file
from torch import Tensor

from oral_ray.adapters.layout import AdapterLayout
from oral_ray.adapters.tokens import TokenMoments, token_mask
from oral_ray.bases.spec import build_spec
from oral_ray.cluster import limit_threads
from oral_ray.cluster.training import run_workers, worker_checkpoint, worker_rank, worker_report, worker_rows
from oral_ray.config import (
    ConditionConfig,
    GeneratorConfig,
    LoraSettings,
    Section,
    TrainingConfig,
    derive_seed,
    fingerprint,
)
from oral_ray.errors import StoreError
from oral_ray.generator.data import CorpusRow, CorpusTables
from oral_ray.generator.model import build_network
from oral_ray.generator.spec import GeneratorSpec
from oral_ray.generator.training import MetricsRow, TrainingLoop
from oral_ray.objects import open_objects
from oral_ray.store.shards import ShardManifest, commit_shards, corpus_rows, read_manifest, read_stats, shard_prefix

EMBEDDING = 384
_CURVE = "curve.json"


class Shape(Section):
    """The base that the adapters are for, and their LoRA settings; the defaults are MiniLM-L6, r=4 on query and value."""

    hidden: PositiveInt = 384
    layers: PositiveInt = 6
    r: PositiveInt = 4
    token_dim: PositiveInt = 384

    def layout(self) -> AdapterLayout:
        """The layout of a llama of this shape; reads no weights."""
        config = {
            "model_type": "llama", "hidden_size": self.hidden, "intermediate_size": 4 * self.hidden,
            "num_hidden_layers": self.layers, "num_attention_heads": 4,
        }  # fmt: skip
        return AdapterLayout.of(build_spec(config, {}, "bench"), LoraSettings(r=self.r), self.token_dim)


class Job(Section):
    """What every worker of a run is told. At `kill_step` the last worker ends itself with SIGKILL, once a `progress`."""

    store: str
    shards: str
    training: TrainingConfig
    generator: GeneratorConfig = GeneratorConfig()
    determinism: bool = False
    progress: str
    kill_step: int | None = None
    step_s: float = 0.0

    @property
    def killed(self) -> str:
        """The file that says that the worker has ended itself."""
        return f"{self.progress}.killed"


def build_corpus(uri: str, shape: Shape, num_rows: int, num_files: int) -> ShardManifest:
    """Write `num_rows` random adapters in `num_files` Parquet files, as the stage `shards` lays them out."""
    layout, objects, moments = shape.layout(), open_objects(uri), TokenMoments()
    recipe = fingerprint("bench corpus", shape, num_rows, num_files)
    if (known := read_manifest(objects, recipe)) is not None:
        return known
    mask_LD = token_mask(layout)
    files = tuple(f"part-{i:06d}.parquet" for i in range(num_files))
    for i, name in enumerate(files):
        rows = []
        for n in range(i, num_rows, num_files):
            rng = torch.Generator().manual_seed(derive_seed(0, "bench", n))
            tokens_LD = torch.randn(mask_LD.shape, generator=rng) * mask_LD
            moments.add(layout, tokens_LD)
            rows.append({
                "digest": fingerprint("row", n), "layout": layout.digest, "base": f"base-{n % 4}", "task": f"task-{n % 8}",
                "seed": 0, "step": n, "tokens": tokens_LD.numpy().astype("<f4").tobytes(),
            })  # fmt: skip
        table, sink = pa.Table.from_pylist(rows), pa.BufferOutputStream()
        table = table.set_column(table.column_names.index("tokens"), "tokens", table["tokens"].cast(pa.large_binary()))
        pq.write_table(table, sink)
        objects.put(shard_prefix(recipe, "bench") + name, sink.getvalue().to_pybytes())
    stats = moments.finish()
    manifest = ShardManifest(
        fingerprint=recipe, attempt="bench", files=files, num_rows=num_rows, layouts={layout.digest: layout},
        bases=tuple(f"base-{i}" for i in range(4)), prompts={f"task-{i}": ("",) for i in range(8)},
        scales=tuple((role, factor, rows) for (role, factor), rows in stats.scales.items()),
    )  # fmt: skip
    commit_shards(objects, manifest, stats)
    return manifest


def run_training(job: Job, name: str) -> list[dict[str, Any]]:
    """Run it on the connected cluster and return its training log, whatever was lost on the way."""
    manifest, curve = _manifest(job), []
    run_workers(
        train_worker,
        {"job": job.model_dump(mode="json")},
        job.training,
        num_steps=job.training.steps,
        uris=[f"{job.store}/{key}" for key in manifest.keys],
        storage_uri=f"{job.store}/training",
        name=name,
        collect=lambda folder: curve.extend(json.loads((folder / _CURVE).read_text())),
    )
    return curve


def train_worker(loop_config: dict[str, Any]) -> None:
    """Worker of a run."""
    job = Job.model_validate(loop_config["job"])
    limit_threads(job.training.threads_per_worker, job.determinism)
    manifest, (rank, num_workers) = _manifest(job), worker_rank()
    spec = GeneratorSpec(
        generator=job.generator, condition=ConditionConfig(), token_dim=next(iter(manifest.layouts.values())).token_dim,
        text_dim=EMBEDDING, model_dim=EMBEDDING, text_encoder_fingerprint="", architectures=(), recipe="bench",
    )  # fmt: skip
    marker = Path(job.killed)

    def rows() -> Iterable[CorpusRow]:
        return corpus_rows(worker_rows(), manifest.layouts)

    with worker_checkpoint() as resume:
        curve: list[dict[str, Any]] = json.loads((resume / _CURVE).read_text()) if resume else []

        def report(row: MetricsRow, folder: Path | None) -> None:
            curve.append(row.model_dump())
            if folder is not None:
                (folder / _CURVE).write_text(json.dumps(curve))
            if rank == 0:
                with Path(job.progress).open("a", encoding="utf-8") as file:
                    line = {"time": time.time(), "step": row.step, "num_workers": num_workers, "pid": os.getpid()}
                    file.write(json.dumps(line) + "\n")
            worker_report(loop_config["board"], row.model_dump(), folder, job.training.checkpoint_upload)
            if row.step == job.kill_step and rank == num_workers - 1 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(job.step_s)

        TrainingLoop(
            build_network(spec, 0), tables(manifest, job.store), rows, job.training, drop_text_frac=0.1,
            drop_model_frac=0.1, seed=0, rank=rank, num_workers=num_workers, resume=resume, report=report,
            save_network=_save_weights,
        ).run()  # fmt: skip


def tables(manifest: ShardManifest, store: str) -> CorpusTables:
    """Random embeddings of the corpus's tasks and bases, the same for everybody, beside its statistics."""
    rng = torch.Generator().manual_seed(0)
    return CorpusTables(
        layouts=manifest.layouts,
        prompts={task: torch.randn(4, EMBEDDING, generator=rng) for task in manifest.prompts},
        bases={base: torch.randn(EMBEDDING, generator=rng) for base in manifest.bases},
        stats=read_stats(open_objects(store), manifest),
    )


def _save_weights(state: dict[str, Tensor], folder: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "ema.safetensors")


def _manifest(job: Job) -> ShardManifest:
    manifest = read_manifest(open_objects(job.store), job.shards)
    if manifest is None:
        raise StoreError(f"the benchmark's corpus {job.shards} is not in {job.store}; run the benchmark again")
    return manifest
