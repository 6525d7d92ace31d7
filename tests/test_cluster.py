"""Ray is asked for only inside a session that has it."""

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
