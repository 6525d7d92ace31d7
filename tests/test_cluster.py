"""Ray is asked for only inside a session that has it; a training run asks for no more than it was given."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from oral_ray.cluster import device_of, run_tasks, session
from oral_ray.cluster.data import write_parquet
from oral_ray.cluster.failures import users_error
from oral_ray.cluster.training import run_workers, worker_report, worker_rows
from oral_ray.config import ClusterConfig, TrainingConfig
from oral_ray.errors import ArtifactError, ConfigError


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


def test_a_worker_computes_where_it_was_given_a_gpu_and_never_quietly_elsewhere(monkeypatch: pytest.MonkeyPatch):
    assert device_of(0) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (device_of(0), device_of(0.25)) == ("cpu", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ConfigError, match=r"has 0.25 GPU of the cluster and torch .* sees no CUDA device; install torch"
    ):
        device_of(0.25)


def test_more_gpus_than_the_machine_has_are_refused_before_a_task_waits_for_them():
    settings, begun = ClusterConfig(num_cpus=1, gpus_per_task=99), []
    with (
        pytest.raises(ConfigError, match=r"cluster.gpus_per_task=99, and this machine has \d GPUs; set 0"),
        session(settings, determinism=False),
    ):
        run_tasks([(begun.append, (1,))], settings, determinism=False, retries=0, label="work")
    assert begun == []


def test_a_session_in_which_there_is_nothing_to_do_imports_no_ray_and_connects_to_none():
    code = """
import sys
from oral_ray.cluster import run_tasks, session
from oral_ray.config import ClusterConfig
settings = ClusterConfig(address="no-such-cluster:6379")
with session(settings, determinism=True):
    assert run_tasks([], settings, determinism=True, retries=0, label="nothing") == []
assert "ray" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=True)


def test_a_run_whose_workers_hold_every_cpu_still_reads_its_shards(tmp_path: Path):
    folder = tmp_path / "a folder"
    folder.mkdir()
    for i in range(3):
        pq.write_table(pa.table({"a": [i, 10 + i]}), folder / f"{i}.parquet")
    # in a process of its own, which can be ended: a run that waits for a CPU waits for ever
    subprocess.run([sys.executable, __file__, str(folder)], timeout=400, check=True)
    assert json.loads((folder / "rows.json").read_text()) == [0, 10, 1, 11, 2, 12]


def run_on_one_cpu(folder: Path) -> None:
    def loop(config: dict[str, Any]) -> None:
        checkpoint = Path(tempfile.mkdtemp())
        (checkpoint / "rows.json").write_text(json.dumps([row["a"] for row in worker_rows()]))
        worker_report(config["board"], {"step": 1, "loss": 0.0}, checkpoint)

    def collect(checkpoint: Path) -> None:
        shutil.copy(checkpoint / "rows.json", folder)

    with session(ClusterConfig(num_cpus=1), determinism=True):
        run_workers(
            loop, {}, TrainingConfig(num_workers=1, cpus_per_worker=1, max_failures=0), num_steps=1, name="x",
            uris=[f"file://{folder}/{i}.parquet" for i in range(3)], storage_uri=f"file://{folder}/training",
            collect=collect,
        )  # fmt: skip


if __name__ == "__main__":
    run_on_one_cpu(Path(sys.argv[1]))


def test_an_error_of_a_worker_is_dug_out_of_what_ray_makes_of_it():
    """Ray's own error is of two classes, its and the worker's; its text ends in a traceback."""
    import ray.exceptions

    raised = ray.exceptions.RayTaskError("work", "a traceback", ArtifactError("adapter x is not finite\nand more"))
    wrapped = raised.as_instanceof_cause()
    assert isinstance(wrapped, ArtifactError)
    found = users_error(wrapped)
    assert type(found) is ArtifactError and str(found) == "adapter x is not finite"
    assert users_error(ValueError("no user's error")) is None
