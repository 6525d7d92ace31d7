"""Training on a cluster: tokens a second of plain torch and of DeepSpeed, of one and two workers, and what data and
checkpoints cost. Ray Train with gloo, Ray Data from Parquet files in a folder store; one thread a worker.

`overhead` is that of DeepSpeed over plain torch with as many workers; `data_wait_frac` of a step is spent waiting for the
next batch; `checkpoint_s` is for how long the run stands still for one.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from oral_ray import cluster
from oral_ray.bench.harness import BenchOptions, Result, Row
from oral_ray.bench.runs import Job, Shape, build_corpus, run_training
from oral_ray.config import ClusterConfig, DeepSpeedEngine, TrainingConfig
from oral_ray.store.shards import ShardManifest

VARIANTS: dict[str, dict[str, Any]] = {
    "torch, 1 worker": {},
    "zero-2, 1 worker": {"engine": DeepSpeedEngine(zero_stage=2)},
    "torch, 2 workers": {"num_workers": 2},
    "zero-2, 2 workers": {"engine": DeepSpeedEngine(zero_stage=2), "num_workers": 2},
    "torch, 1 worker, streamed anew every epoch": {"cache_bytes": 1_000_000},
    "torch, 1 worker, windows of a quarter": {"window_tokens": -4},
    "torch, 1 worker, two parts": {"accumulation": 2},
    "torch, 1 worker, activations computed again": {"activation_checkpointing": True},
    "torch, 1 worker, bfloat16": {"dtype": "bfloat16"},
    "torch, 1 worker, checkpoint every 5 steps, sync": {"checkpoint_every": 5, "checkpoint_upload": "sync"},
    "torch, 1 worker, checkpoint every 5 steps, async": {"checkpoint_every": 5, "checkpoint_upload": "async"},
}


class Options(BenchOptions):
    """`only` are the variants to run, by name; each takes one warm-up interval and `repetitions` measured ones."""

    shape: Shape = Shape()
    batch_size: PositiveInt = 16
    interval: PositiveInt = 5
    num_rows: PositiveInt = 64
    only: tuple[str, ...] = tuple(VARIANTS)


def run(options: Options) -> Result:
    """A row a variant, each a Ray Train run of its own on one private Ray."""
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory(prefix="oral-bench-") as name:
        manifest = build_corpus(f"file://{name}/store", options.shape, options.num_rows, num_files=4)
        with cluster.session(ClusterConfig(), determinism=False):
            for what in options.only:
                rows[what] = _measured(what, options, manifest, Path(name))
    for what, row in rows.items():
        plain = rows.get(what.replace("zero-2", "torch"))
        if what.startswith("zero") and plain:
            row["overhead"] = float(row["step_s"] or 0) / float(plain["step_s"] or 1) - 1  # type: ignore[arg-type]
    return Result(rows=tuple(rows.values()))


def _measured(what: str, options: Options, manifest: ShardManifest, folder: Path) -> Row:
    steps, num_tokens = (options.repetitions + 1) * options.interval, options.shape.layout().num_tokens
    settings = {
        "steps": steps, "batch_size": options.batch_size, "validation_frac": 0.0, "validate_every": options.interval,
        "checkpoint_every": steps, "max_failures": 0, "cpus_per_worker": 0.5, **VARIANTS[what],
    }  # fmt: skip
    trained = num_tokens
    if "window_tokens" in settings:
        trained = settings["window_tokens"] = -(-num_tokens // -settings["window_tokens"])
    training = TrainingConfig.model_validate(settings)
    job = Job(
        store=f"file://{folder}/store", shards=manifest.fingerprint, training=training,
        progress=f"{folder}/progress.jsonl",
    )  # fmt: skip
    curve = run_training(job, what.replace(", ", "-").replace(" ", "-"))[1:]  # the first interval warms up
    step_s = [row["step_s"] for row in curve]
    stood = [row["checkpoint_s"] for row in curve if row["checkpoint_s"]]
    return {
        "what": what,
        "workers": training.num_workers,
        "tokens_per_s": options.batch_size * trained / statistics.median(step_s),
        "step_s": statistics.median(step_s),
        "lowest": min(step_s),
        "highest": max(step_s),
        "runs": len(step_s),
        "data_wait_frac": statistics.median(row["data_wait_s"] / row["step_s"] for row in curve),
        "checkpoint_s": statistics.median(stood) if stood else None,
        "overhead": None,
    }
