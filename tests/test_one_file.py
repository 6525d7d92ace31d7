"""One file adds an arm and one a kind of base with its metric, and both go the whole way: training, generation, scoring,
table, figure, report and gate. The metric is a figure of a set where lower is better, of values that are rows."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# (the stubs of pandas type every selection as a union that nothing can be done with)

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.container import BarContainer
from nightly_fixtures import tiny_config, trained_here
from test_evaluation_registry import HALVED, add_arm  # noqa: F401 (a fixture)

from oral_ray import modalities
from oral_ray.cluster import data
from oral_ray.config import Config
from oral_ray.evaluation import evaluate
from oral_ray.evaluation.answers import values_by_task
from oral_ray.evaluation.report.figures import plot_arms
from oral_ray.evaluation.report.page import write_report
from oral_ray.evaluation.report.tables import arm_table, arms_text, read_table
from oral_ray.local.parquet import parse_table
from oral_ray.modalities import MODALITIES
from oral_ray.nightly import regenerate
from oral_ray.objects import open_objects
from oral_ray.pipeline.walk import train_seeds
from oral_ray.store.adapters import AdapterStore
from oral_ray.store.generators import read_metrics
from oral_ray.store.records import Records

TOYS = Path(__file__).parent / "toys"
ARMS = ("base", "majority", "reuse_new", "halved", "generated")


@pytest.fixture
def numbers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The file of the toy kind beside those that ship, and its line in the registry; bases of encoders are of this kind."""
    monkeypatch.setattr(modalities, "__path__", [*modalities.__path__, str(TOYS)])
    kind = importlib.import_module("oral_ray.modalities.numbers").Numbers()
    for name in (kind.name, "encoder"):
        monkeypatch.setitem(MODALITIES, name, kind)
    yield
    del sys.modules["oral_ray.modalities.numbers"]


@pytest.fixture
def shards_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are written and measured in this process instead of with Ray Data."""

    def write(items: list[dict[str, Any]], transform: Callable[[pa.Table], pa.Table], uri: str, rows_per_file: int):
        folder = Path(uri.removeprefix("file://"))
        folder.mkdir(parents=True)
        for i in range(0, len(items), rows_per_file):
            rows = pa.Table.from_pylist(items[i : i + rows_per_file])
            pq.write_table(transform(rows), folder / f"part-{i // rows_per_file:06d}.parquet")

    def fold(uris: list[str], measure: Callable[[pa.Table], bytes]) -> list[bytes]:
        return [measure(parse_table(Path(uri.removeprefix("file://")).read_bytes())) for uri in uris]

    monkeypatch.setattr(data, "write_parquet", write)
    monkeypatch.setattr(data, "fold_parquet", fold)


@pytest.fixture
def config(numbers: None, shards_here: None, add_arm, tmp_path: Path, tiny_bert: Path) -> Config:  # noqa: F811
    add_arm("halved", HALVED)
    return tiny_config(
        tmp_path / "store", tiny_bert, f"out={tmp_path / 'out'}", 'evaluation.bases=["tiny-t1", "tiny-t2"]',
        f"evaluation.arms={list(ARMS)}".replace("'", '"'), "evaluation.step_curve=[1]", "corpus.steps=12",
        "corpus.batch_size=8", "corpus.learning_rate=2e-2", "corpus.keep_last=1", 'training.engine={kind="torch"}',
        "training.num_workers=1", "training.steps=5", "training.functional.steps=1", "tasks.further=[]",
        "regenerate.min_gain_over_base=0.05",
    )  # fmt: skip


def error_of(rows: np.ndarray) -> float:
    """The metric once more, by its definition."""
    return sum((said - wanted) ** 2 for said, wanted in rows) ** 0.5 / len(rows) ** 0.5


def test_an_arm_and_a_kind_of_base_of_one_file_each_go_the_whole_way(config: Config):
    trained = trained_here(config)
    scores = evaluate.evaluate_arms(trained, train_seeds(trained))
    out = Path(config.out)
    table = arm_table(out, 20)

    assert set(scores["metric"]) == {"rmse"}
    assert set(scores["arm"]) == set(ARMS) - {"majority"}, "no error is that of always the most frequent answer"
    answers = read_table(out, "answers")
    for row in table.to_dict("records"):
        part = answers[(answers["arm"] == row["arm"]) & (answers["base"] == row["base"])]
        values = values_by_task(part)
        assert {rows.shape for rows in values.values()} == {(1, 20, 2)}
        figures = [error_of(rows[0]) for rows in values.values()]
        assert row["mean"] == pytest.approx(np.mean(figures)) and row["low"] < row["mean"] < row["high"]
    by_arm = table[table["base"] == "tiny-t2"].set_index("arm")
    assert by_arm.loc["reuse_new", "mean"] < by_arm.loc["base", "mean"], "training makes the error smaller"
    assert by_arm.loc["base", "vs_reuse_new"] < 0 < by_arm.loc["reuse_new", "mean"], "what is worse has a minus"
    assert by_arm.loc["base", "vs_reuse_new"] == pytest.approx(
        by_arm.loc["reuse_new", "mean"] - by_arm.loc["base", "mean"]
    )
    head, *lines = arms_text(table).splitlines()
    assert head == "rmse (lower is better):" and [line.split()[0] for line in lines] == ["arm", *by_arm.index]
    assert f"{by_arm.loc['halved', 'mean']:.3f} [" in arms_text(table)

    drawn = bars(table)
    assert drawn.keys() == set(by_arm.index)
    assert drawn["halved"] == pytest.approx(list(table[table["arm"] == "halved"]["mean"]))

    pd.DataFrame(read_metrics(open_objects(config.store), trained.recipe)).to_parquet(out / "metrics.parquet")
    page = write_report(out).read_text()
    assert "<th>rmse (lower is better)</th>" in page and "rmse, plus is better to halved" in page

    summary = regenerate.regenerate(trained)
    assert len(summary.outcomes) == 2 and not summary.failed
    for outcome in summary.outcomes:
        best = min(outcome.scores, key=lambda name: outcome.scores[name])
        assert best != "base" and outcome.decision.arm == best, "the gate takes the smallest error"
        assert outcome.decision.reason.startswith("best on validation in rmse (lower is better): generated ")
        assert AdapterStore(open_objects(config.store)).is_whole(outcome.digest)
    assert {row["task"] for row in summary.published} == set(config.tasks.ids)

    stored = list(Records(open_objects(config.store)).all("scores"))
    assert {record["metric"] for record in stored} == {"rmse"}
    assert all(len(row) == 2 for record in stored for row in record["values"])


def bars(table: pd.DataFrame) -> dict[str, list[float]]:
    """The heights of the bars of the figure of arms, by arm."""
    axes = plt.figure().subplots()
    plot_arms(axes, table)
    found = {
        str(drawn.get_label()): [bar.get_height() for bar in drawn.patches]
        for drawn in axes.containers
        if isinstance(drawn, BarContainer)
    }
    assert axes.get_ylabel() == "rmse (lower is better)"
    plt.close()
    return found
