"""Ray is asked for only inside a session that has it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from oral_ray.cluster import run_workers, session, write_parquet
from oral_ray.config import ClusterConfig, TrainingConfig
from oral_ray.errors import ConfigError


def test_what_needs_ray_is_refused_without_it_and_starts_no_cluster_of_its_own(tmp_path: Path):
    with session(ClusterConfig(address="none"), determinism=False):
        with pytest.raises(ConfigError, match=r"training needs Ray, and cluster\.address='none' has none"):
            run_workers(
                lambda config: None, {}, TrainingConfig(), num_steps=1, uris=["a"], storage_uri=str(tmp_path),
                name="x", collect=lambda folder: None,
            )  # fmt: skip
        with pytest.raises(ConfigError, match="writing shards needs Ray"):
            write_parquet([{"a": 1}], lambda table: table, str(tmp_path), 1)
    assert list(tmp_path.iterdir()) == []


FULL = """
import sys
from oral_ray.bench.runs import Job, Shape, build_corpus, run_training
from oral_ray.cluster import session
from oral_ray.config import ClusterConfig, GeneratorConfig, TrainingConfig
store = f"file://{sys.argv[1]}/store"
manifest = build_corpus(store, Shape(hidden=32, layers=2, r=2, token_dim=32), num_rows=16, num_files=2)
training = TrainingConfig(steps=10, batch_size=4, validate_every=5, cache_bytes=20_000, max_failures=0)
generator = GeneratorConfig(width=32, head_dim=32, num_layers=1, denoiser_width=32, denoiser_blocks=1)
job = Job(store=store, shards=manifest.fingerprint, training=training, generator=generator, progress=sys.argv[1] + "/p")
with session(ClusterConfig(num_cpus=1), determinism=True):
    print([row["step"] for row in run_training(job, "full")])
"""


def test_a_run_whose_workers_hold_every_cpu_still_reads_its_corpus_also_in_later_passes(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "[5, 10]"
