"""Engines agree with plain torch, on two workers, in parts, recomputed, resumed, and on fewer workers than before."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from engines_on_workers import VARIANTS
from factory_fixtures import layout_of
from test_generator_training import corpus

Found = dict[str, dict[str, Any]]
HERE = Path(__file__)


def workers(folder: Path, num_workers: int) -> Found:
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE.with_name("engines_on_workers.py")), str(folder), str(rank), str(num_workers)],
            cwd=HERE.parent, env={**os.environ, "OMP_NUM_THREADS": "1", "LOCAL_RANK": str(rank)}, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )
        for rank in range(num_workers)
    ]  # fmt: skip
    try:
        for process in processes:
            _, stderr = process.communicate(timeout=240)
            assert process.returncode == 0, stderr[-3000:]
    finally:
        for process in processes:
            process.kill()
    return json.loads((folder / f"found-{num_workers}.json").read_text())


@pytest.fixture(scope="module")
def found(tiny_bert: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Found]:
    """What every engine found on two workers, then on one that went on from their checkpoints of step 4."""
    folder = tmp_path_factory.mktemp("engines")
    torch.save(corpus([layout_of(tiny_bert), layout_of(tiny_llama, 3)], 12), folder / "corpus.pt")
    two = workers(folder, 2)
    return two, workers(folder, 1)


def tolerance(name: str) -> float:
    return 2e-2 if "bfloat16" in name else 1e-4


@pytest.mark.parametrize("name", VARIANTS)
def test_every_engine_has_the_loss_curve_and_the_weights_of_plain_torch(found: tuple[Found, Found], name: str) -> None:
    plain, other = found[0]["torch"]["whole"], found[0][name]["whole"]
    assert plain["losses"][0] != pytest.approx(plain["losses"][-1], abs=2e-4)
    for what in ("losses", "validation", "weights"):
        assert other[what] == pytest.approx(plain[what], abs=tolerance(name)), what


@pytest.mark.parametrize("name", VARIANTS)
def test_a_resumed_run_has_the_loss_curve_of_the_uninterrupted_one_to_the_bit(
    found: tuple[Found, Found], name: str
) -> None:
    whole, resumed = found[0][name]["whole"], found[0][name]["resumed"]
    assert resumed["losses"] == whole["losses"][1:] and resumed["validation"] == whole["validation"][1:]
    assert resumed["weights"] == whole["weights"]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_of_two_workers_goes_on_with_one(found: tuple[Found, Found], name: str) -> None:
    assert found[1][name]["restored"]
    plain, fewer = found[1]["torch"]["fewer"], found[1][name]["fewer"]
    assert len(fewer["losses"]) == 1
    for what in ("losses", "validation", "weights"):
        assert fewer[what] == pytest.approx(plain[what], abs=tolerance(name)), what
