"""The whole path with a GPU for every task and every training worker; skipped where there is none."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from pipeline import finished, job

from oral_ray.evaluation.arms.registry import arm_names

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)


def test_the_whole_path_runs_on_gpus(tiny_bert: Path, tmp_path: Path):
    given = ("cluster.gpus_per_task=0.2", "training.gpus_per_worker=0.5", 'training.engine={kind = "torch"}')
    run = job("quickstart", tiny_bert, str(tmp_path / "store"), tmp_path / "out", *given, "training.num_workers=1")
    printed = finished(run)
    scores = pd.read_parquet(tmp_path / "out/scores.parquet")
    assert set(scores["arm"]) == set(arm_names()) and scores["value"].between(0, 1).all()
    assert "tiny-t2 (UNSEEN)" in printed
