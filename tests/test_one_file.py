"""One file adds an arm and one a kind of base with its metric, and both go the whole way: training, generation, scoring,
table, figure, report and gate. The metric is a figure of a set where lower is better, of values that are rows."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# (the stubs of pandas type every selection as a union that nothing can be done with)

import importlib
import json
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
from test_tasks_own import write

from oral_ray import modalities
from oral_ray.bases import skeleton
from oral_ray.cluster import data
from oral_ray.config import Config
from oral_ray.evaluation import evaluate
from oral_ray.evaluation.answers import values_by_task
from oral_ray.evaluation.report.figures import plot_arms
from oral_ray.evaluation.report.page import write_report
from oral_ray.evaluation.report.tables import arm_table, arms_text, read_table
from oral_ray.local.parquet import parse_table
from oral_ray.modalities import MODALITIES, Metric
from oral_ray.modalities.encoder import Encoder
from oral_ray.modalities.metrics import pairs
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
    skeleton._built.cache_clear()  # it knows the kinds of configs
    yield
    skeleton._built.cache_clear()
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
    return small_config(tmp_path, tiny_bert)


def small_config(tmp_path: Path, tiny_bert: Path, *overrides: str) -> Config:
    return tiny_config(
        tmp_path / "store", tiny_bert, f"out={tmp_path / 'out'}", 'evaluation.bases=["tiny-t1", "tiny-t2"]',
        f"evaluation.arms={list(ARMS)}".replace("'", '"'), "evaluation.step_curve=[1]", "corpus.steps=12",
        "corpus.batch_size=8", "corpus.learning_rate=2e-2", "corpus.keep_last=1", 'training.engine={kind="torch"}',
        "training.num_workers=1", "training.steps=5", "training.functional.steps=1", "tasks.further=[]",
        "regenerate.min_gain_over_base=0.05", *overrides,
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


def distance(rows_N2: np.ndarray) -> float:
    """The total variation distance between the labels that are chosen and those that are wanted."""
    chosen_K, wanted_K = (np.bincount(column.astype(int), minlength=int(rows_N2.max()) + 1) for column in rows_N2.T)
    return float(np.abs(chosen_K - wanted_K).sum() / 2 / len(rows_N2))


def f1_of(rows: np.ndarray) -> float:
    """Macro F1 once more, by precision and recall."""
    found = []
    for label in set(rows.flatten()):
        hits = sum(1 for chosen, wanted in rows if chosen == wanted == label)
        said, there = (list(column).count(label) for column in rows.T)
        precision, recall = hits / max(said, 1), hits / max(there, 1)
        found.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    return sum(found) / len(found)


TOTAL_VARIATION = Metric("total_variation", higher_is_better=False, figure=distance, of_choices=pairs)


def test_a_task_is_reported_by_the_figure_of_a_set_that_it_names(
    shards_here: None, tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Encoder, "metrics", (*Encoder.metrics, TOTAL_VARIATION))
    ids = []
    for name, metric in (("by-f1", "macro_f1"), ("by-distance", "total_variation"), ("plain", "")):
        header = f'labels = ["animal", "plant"]\nmetric = "{metric}"'
        ids.append(str(write(tmp_path / name, header)))
    arms = ("base", "majority", "reuse_new", "generated")
    config = small_config(
        tmp_path, tiny_bert, f"tasks.ids={json.dumps(ids)}", f"evaluation.arms={json.dumps(arms)}",
        "regenerate.min_gain_over_base=0.001", "tasks.unseen=[]",
    )  # fmt: skip
    trained = trained_here(config)
    scores = evaluate.evaluate_arms(trained, train_seeds(trained))
    out = Path(config.out)
    assert dict(scores.groupby("task")["metric"].first()) == {
        "folder/by-distance": "total_variation", "folder/by-f1": "macro_f1", "folder/plain": "accuracy",
    }  # fmt: skip
    table, answers = arm_table(out, 20), read_table(out, "answers")
    for metric, label in (("macro_f1", "macro_f1"), ("total_variation", "total_variation (lower is better)")):
        of_metric = table[table["metric"] == metric]
        assert bars(of_metric, label)["base"] == pytest.approx(list(of_metric[of_metric["arm"] == "base"]["mean"]))
    assert set(table["arm"]) == set(arms), "the majority answer has a figure by every metric of choices"
    by_definition = {"macro_f1": f1_of, "total_variation": distance, "accuracy": np.mean}
    for row in table.to_dict("records"):
        [values] = values_by_task(
            answers[(answers[["arm", "base", "metric"]] == [row["arm"], row["base"], row["metric"]]).all(axis=1)]
        ).values()
        assert row["mean"] == pytest.approx(by_definition[row["metric"]](values[0]))
    assert [line for line in arms_text(table).splitlines() if line.endswith(":")] == [
        "macro_f1 %:", "total_variation (lower is better):", "accuracy %:",
    ]  # fmt: skip
    pd.DataFrame(read_metrics(open_objects(config.store), trained.recipe)).to_parquet(out / "metrics.parquet")
    page = write_report(out).read_text()
    assert "<th>macro_f1 %</th>" in page and "<th>total_variation (lower is better)</th>" in page
    summary = regenerate.regenerate(trained)
    assert len(summary.outcomes) == 3 and not summary.failed
    for outcome in summary.outcomes:
        figures, lower = outcome.scores, outcome.task == "folder/by-distance"
        best = (min if lower else max)(figures, key=lambda name: figures[name])
        gain = (figures["base"] - figures[best]) * (1 if lower else -1)
        assert outcome.decision.arm == (best if gain > 0.001 else None), "the gate goes by the task's own metric"


def bars(table: pd.DataFrame, label: str = "rmse (lower is better)") -> dict[str, list[float]]:
    """The heights of the bars of the figure of arms, by arm."""
    axes = plt.figure().subplots()
    plot_arms(axes, table)
    found = {
        str(drawn.get_label()): [bar.get_height() for bar in drawn.patches]
        for drawn in axes.containers
        if isinstance(drawn, BarContainer)
    }
    assert axes.get_ylabel() == label
    plt.close()
    return found
