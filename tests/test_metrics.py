"""Metrics: direction, printing, figures of a set in intervals and tables, and what is refused by name."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from factory_fixtures import base_of, toy_task, words_task
from test_evaluation_report import write_tables

from oral_ray.bases.tokenizer import check_task
from oral_ray.errors import EvaluationError, TaskError
from oral_ray.evaluation import cells
from oral_ray.evaluation.answers import answer_rows, by_metric, values_by_task
from oral_ray.evaluation.cells import CellValues
from oral_ray.evaluation.report import figures
from oral_ray.evaluation.report.page import write_report
from oral_ray.evaluation.report.tables import arm_table, arms_text, spread_text
from oral_ray.evaluation.scoring import Score, example_values, majority_values, metric_of
from oral_ray.evaluation.statistics import mean_over_tasks, paired_difference
from oral_ray.modalities import ACCURACY, MODALITIES, Metric, metric_named
from oral_ray.modalities.encoder import Encoder
from oral_ray.modalities.metrics import MACRO_F1
from oral_ray.study.evidence import headline, headline_text, task_table, variant_table

SPREAD = Metric("spread", higher_is_better=False, figure=lambda rows: float(np.linalg.norm(np.std(rows, axis=0))))
"""No mean over examples, of values that are floats or rows of floats."""
ERROR = Metric("error", higher_is_better=False)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables find the metrics of this file."""
    monkeypatch.setattr(type(MODALITIES["encoder"]), "metrics", (ACCURACY, SPREAD, ERROR))


def score(metric: Metric, arm: str, values: np.ndarray, **other: Any) -> Score:
    about = {"base": "t0", "base_seen": False, "task": "x", "seed": 0, "digest": ""} | other
    return Score(arm=arm, metric=metric.name, value=metric.figure(values), n=len(values), **about)


def tables_of(scored: list[tuple[Metric, str, np.ndarray, dict[str, Any]]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """scores and answers of these values."""
    scores = [score(metric, arm, values, **other) for metric, arm, values, other in scored]
    answers = [answer_rows(made, values) for made, (_, _, values, _) in zip(scores, scored, strict=True)]
    return pd.DataFrame([made.model_dump() for made in scores]), pd.concat(answers, ignore_index=True)


def through_parquet(table: pd.DataFrame) -> pd.DataFrame:
    file = io.BytesIO()
    table.to_parquet(file)
    return pd.read_parquet(file)


def test_what_is_better_follows_the_direction():
    assert ACCURACY.better(0.2, 0.1) and not ACCURACY.better(0.1, 0.1) and not ACCURACY.better(0.2, 0.1, by=0.15)
    assert ERROR.better(0.1, 0.2) and not ERROR.better(0.1, 0.1) and not ERROR.better(0.1, 0.2, by=0.15)
    assert (ACCURACY.gain(0.75, 0.5), ERROR.gain(0.75, 0.5)) == (0.25, -0.25)
    figures_ = {"a": float("nan"), "b": 2.0, "c": 1.0, "d": 1.0, "e": 2.0}
    assert (ACCURACY.best(figures_), ERROR.best(figures_)) == ("b", "c"), (
        "of equals the first, and never what is no number"
    )
    assert ERROR.best({"a": float("nan")}) is ERROR.best({}) is None
    assert not ACCURACY.better(1.0, float("nan")) and not ERROR.better(float("nan"), 1.0)


def test_fractions_are_printed_in_percent_and_other_figures_as_they_are():
    assert (ACCURACY.text(0.1234), ACCURACY.signed_text(0.05), ACCURACY.heading) == ("12.3", "+5.0", "accuracy %")
    distance = dataclasses.replace(ERROR, decimals=1)
    assert (ERROR.text(12.34567), distance.text(12.34567), ERROR.signed_text(-0.5)) == ("12.346", "12.3", "-0.500")
    assert (ERROR.heading, ERROR.difference_unit) == ("error (lower is better)", "error, plus is better")


@pytest.mark.usefixtures("known")
def test_a_metric_is_found_by_its_name_and_an_unknown_or_ambiguous_one_is_refused(monkeypatch: pytest.MonkeyPatch):
    assert metric_named("spread") is SPREAD
    known = "accuracy, denoising_loss, error, macro_f1, spread"
    with pytest.raises(EvaluationError, match=f"has a metric 'luck'; there are {known}"):
        metric_named("luck")
    monkeypatch.setattr(type(MODALITIES["causal"]), "metrics", (dataclasses.replace(ERROR, decimals=1),))
    with pytest.raises(EvaluationError, match="two kinds of base have a metric 'error', and they differ"):
        metric_named("error")


def test_a_reader_whose_metric_its_modality_does_not_name_is_refused(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Encoder, "metrics", (SPREAD,))
    with pytest.raises(EvaluationError, match="metric 'accuracy', which the modality 'encoder' does not name"):
        metric_of(base_of(tiny_bert), toy_task())


def test_the_most_frequent_answer_has_values_only_where_right_answers_are_counted():
    assert np.mean(majority_values(ACCURACY, toy_task(), "test", 8)) == 0.5
    assert majority_values(ERROR, toy_task(), "test", 8) == []


def test_the_interval_of_a_figure_of_a_set_is_over_sets_of_examples():
    rng = np.random.default_rng(0)
    narrow, wide = ({"x": rng.normal(0, scale, (1, 400, 2))} for scale in (1.0, 2.0))
    found = mean_over_tasks(narrow, SPREAD, 300)
    assert found.mean == pytest.approx(SPREAD.figure(narrow["x"][0])) == pytest.approx(2**0.5, abs=0.1)
    assert found.low < found.mean < found.high < found.low + 0.3
    better = paired_difference(narrow, wide, SPREAD, 300)
    assert 0 < better.low < better.mean < better.high, "less is better, and better is plus"
    worse = paired_difference(wide, narrow, SPREAD, 300)
    assert (worse.low, worse.mean, worse.high) == pytest.approx((-better.high, -better.mean, -better.low))
    same = paired_difference(wide, {"x": wide["x"].copy()}, SPREAD, 50)
    assert (same.mean, same.low, same.high) == (0.0, 0.0, 0.0)


def test_a_mean_comes_out_the_same_whether_it_is_taken_over_all_draws_at_once_or_one_by_one():
    values = {task: np.random.default_rng(i).random((3, 60)) for i, task in enumerate("ab")}
    one_by_one = dataclasses.replace(ERROR, figure=lambda values: float(values.mean()))
    assert ERROR.is_mean and not one_by_one.is_mean
    fast, slow = (mean_over_tasks(values, metric, 200) for metric in (ERROR, one_by_one))
    assert fast.model_dump() == pytest.approx(slow.model_dump(), abs=1e-6)


def test_macro_f1_is_the_mean_over_labels_that_are_chosen_or_wanted():
    wanted, chosen = np.array([0, 0, 0, 0, 1, 2]), np.array([0, 0, 0, 1, 1, 4])
    f1 = [6 / 7, 2 / 3, 0.0, 0.0]  # of 0, 1, 2 and 4; 3 is neither chosen nor wanted
    assert MACRO_F1.of_choices and ACCURACY.of_choices
    assert MACRO_F1.figure(MACRO_F1.of_choices(chosen, wanted)) == pytest.approx(np.mean(f1))
    assert MACRO_F1.figure(MACRO_F1.of_choices(wanted, wanted)) == 1.0
    assert ACCURACY.figure(ACCURACY.of_choices(chosen, wanted)) == pytest.approx(4 / 6)


def test_the_most_frequent_answer_is_worth_little_by_macro_f1_where_labels_are_rare():
    task = toy_task()
    rare = task.model_copy(
        update={"test": tuple(e for i, e in enumerate(task.test) if e.label == "animal" or i % 8 == 7)}
    )
    share = np.mean(majority_values(ACCURACY, rare, "test", 100))
    assert share > 0.75 and MACRO_F1.figure(np.array(majority_values(MACRO_F1, rare, "test", 100))) < 0.5


def test_a_task_is_measured_by_the_metric_that_it_names(tiny_bert: Path):
    base, plain = base_of(tiny_bert), toy_task()
    task = plain.model_copy(update={"metric": "macro_f1"})
    assert (metric_of(base, plain), metric_of(base, task)) == (ACCURACY, MACRO_F1)
    [right], [rows] = (example_values(base, of, [None], "test", 100) for of in (plain, task))
    assert [float(chosen == wanted) for chosen, wanted in np.array(rows)] == right
    assert [wanted for _, wanted in np.array(rows)] == [task.labels.index(example.label) for example in task.test]


def test_a_metric_that_does_not_measure_a_task_is_refused_before_it_is_trained_for(
    tiny_bert: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
):
    bert = base_of(tiny_bert)
    with pytest.raises(
        TaskError, match="no metric 'luck' scores a base of kind 'encoder'; there are accuracy, macro_f1"
    ):
        check_task(bert.record, bert.tokenizer, toy_task().model_copy(update={"metric": "luck"}))
    with pytest.raises(
        TaskError, match="'macro_f1' cannot measure what a FreeTextReader answers, which has 'accuracy'"
    ):
        metric_of(base_of(tiny_llama), words_task().model_copy(update={"metric": "macro_f1"}))
    monkeypatch.setattr(Encoder, "metrics", (ACCURACY, ERROR))
    with pytest.raises(TaskError, match="'error' cannot measure what a EncoderReader answers"):
        metric_of(bert, toy_task().model_copy(update={"metric": "error"}))


def test_a_task_that_names_no_metric_is_the_task_that_it_was():
    task = toy_task()
    assert "metric" not in task.model_dump() and task.fingerprint == "6bcfb38e73cf1f8732bbd4181b5f3944"
    assert task.model_copy(update={"metric": "macro_f1"}).fingerprint != task.fingerprint


def test_a_mean_outside_its_interval_is_drawn():
    axes = plt.figure().subplots()
    row = {"metric": "accuracy", "arm": "base", "base": "t0", "base_seen": True, "mean": 0.0, "low": 0.1, "high": 0.2}
    figures.plot_arms(axes, pd.DataFrame([row]))
    [interval] = axes.collections[0].get_paths()
    plt.close("all")
    assert sorted(y for _, y in interval.vertices) == [0.1, 0.2]


@pytest.mark.usefixtures("known")
def test_values_survive_the_parquet_file_be_they_floats_or_rows():
    floats, rows = np.array([0.1, 0.7, np.nan]), np.array([[1.0, 2.0], [3.0, 4.5]])
    _, answers = tables_of(
        [
            (ERROR, "base", floats, {}),
            (SPREAD, "base", rows, {"task": "y"}),
            (SPREAD, "base", rows + 1, {"task": "y", "seed": 1}),
        ]
    )
    found = {metric.name: values_by_task(part) for metric, part in by_metric(through_parquet(answers))}
    np.testing.assert_array_equal(found["error"]["x"], [floats])
    np.testing.assert_array_equal(found["spread"]["y"], [rows, rows + 1])
    _, plain = tables_of([(ERROR, "base", floats, {})])
    assert "features" not in plain


def mixed(folder: Path) -> Path:
    """Tables of an evaluation of one task by accuracy and two by another metric, `generated` better in both."""
    write_tables(folder, arms=("base",))
    rng = np.random.default_rng(0)
    scored = []
    for base in ("base-t0", "base-t3"):
        for task, metric in (("x", ACCURACY), ("y", SPREAD), ("z", SPREAD)):
            for arm, quality in (("base", 0.5), ("reuse_new", 0.6), ("generated", 0.9)):
                right = 1.0 * (np.arange(50) < 50 * quality)
                values = right if metric is ACCURACY else rng.normal(0, 2 - quality, (50, 3))
                scored.append((metric, arm, values, {"base": base, "task": task, "base_seen": base == "base-t0"}))
    scores, answers = tables_of(scored)
    scores.to_parquet(folder / "scores.parquet")
    answers.to_parquet(folder / "answers.parquet")
    curve = [("x", "accuracy", 0.7), ("y", "spread", 1.2)]
    pd.DataFrame(
        {"base": "base-t3", "task": task, "metric": metric, "num_steps": n, "value": value}
        for task, metric, value in curve
        for n in (1, 5)
    ).to_parquet(folder / "curve.parquet")
    return folder


@pytest.mark.usefixtures("known")
def test_means_over_tasks_are_of_tasks_of_one_metric_and_each_has_a_table(tmp_path: Path):
    table = arm_table(mixed(tmp_path), 50)
    assert dict(table.groupby("metric")["num_tasks"].first()) == {"accuracy": 1, "spread": 2}
    scores = pd.read_parquet(tmp_path / "scores.parquet")
    for row in table.to_dict("records"):
        part = scores[(scores[["metric", "arm", "base"]] == [row["metric"], row["arm"], row["base"]]).all(axis=1)]
        assert row["mean"] == pytest.approx(part["value"].mean())
    assert table[table["arm"] == "generated"]["vs_reuse_new"].min() > 0, "better is plus, whichever the direction"
    first, second = arms_text(table).split("\n\n")
    assert first.startswith("accuracy %:\narm ") and second.startswith("spread (lower is better):\narm ")
    assert "90.0 [" in first and "90.0" not in second
    assert spread_text([tmp_path]).count("(seen)") == 2
    page = write_report(tmp_path).read_text()
    text = (tmp_path / "report.md").read_text()
    assert "## Differences on each base (points, paired 95% interval)" in text
    assert "## Differences on each base (spread, plus is better, paired 95% interval)" in text
    assert "<th>accuracy %</th>" in page and "<th>spread (lower is better)</th>" in page
    assert "Mean of spread (lower is better) over 2 tasks, 100 test examples a base" in page


@pytest.mark.usefixtures("known")
def test_accuracies_by_themselves_have_no_heading(tmp_path: Path):
    assert arms_text(arm_table(write_tables(tmp_path, arms=("base",)), 20)).startswith("arm ")


@pytest.mark.usefixtures("known")
def test_every_metric_of_a_table_is_drawn_on_axes_of_its_own(tmp_path: Path):
    labels: list[tuple[str, set[str]]] = []

    def plot(axes: Any, table: pd.DataFrame) -> None:
        figures.plot_arms(axes, table)
        labels.append((axes.get_ylabel(), set(table["metric"])))

    assert figures.draw(plot, arm_table(mixed(tmp_path), 10)).startswith(b"\x89PNG")
    assert labels == [("accuracy", {"accuracy"}), ("spread (lower is better)", {"spread"})]


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(("metric", "top", "dark"), [(ACCURACY, "good", 0.9), (ERROR, "bad", 0.1)])
def test_the_better_variant_is_on_top_and_the_better_cell_is_dark(metric: Metric, top: str, dark: float):
    axes = plt.figure().subplots()
    rows = {
        "variant": ["good", "bad"] * 2,
        "task": "x",
        "metric": metric.name,
        "arm": ["generated"] * 2 + ["wrong_prompt"] * 2,
    }
    figures.plot_variants(axes, pd.DataFrame(rows).assign(value=[0.9, 0.1, 0.2, 0.2]))
    assert axes.get_yticklabels()[-1].get_text() == top and axes.get_xlabel() == metric.label
    axes = plt.figure().subplots()
    cells_ = {
        "asked": ["a", "a", "b", "b"],
        "task": ["a", "b", "a", "b"],
        "metric": metric.name,
        "value": [0.9, 0.1, 0.1, 0.9],
    }
    figures.plot_confusion(axes, pd.DataFrame(cells_))
    white = {text.get_text() for text in axes.texts if text.get_color() == "w"}
    plt.close("all")
    assert white == {f"{100 * dark:.0f}" if metric is ACCURACY else metric.text(dark)}


@pytest.mark.usefixtures("known")
def test_headlines_are_of_one_metric_and_take_the_figure_of_a_set_on_every_version(tmp_path: Path):
    scores, answers = (pd.read_parquet(mixed(tmp_path) / f"{name}.parquet") for name in ("scores", "answers"))
    rows = headline(scores.assign(line="", t=0, base_seen=False), answers, 50)
    assert [(row["metric"], row["group"], row["num_tasks"]) for row in rows] == [
        (metric, group, tasks)
        for metric, tasks in (("accuracy", 1), ("spread", 2))
        for group in ("start t=0 (unseen)", "start t=0 (unseen)", "all unseen")
    ]
    of_set = rows[-1]
    wanted = scores[(scores["metric"] == "spread") & (scores["arm"] == "generated")]["value"].mean()
    assert of_set["arms"]["generated"]["mean"] == pytest.approx(wanted, abs=1e-6)
    assert of_set["generated_minus"]["reuse_new"]["low"] > 0 and of_set["generated_over_trained"] is None
    first, second = headline_text(rows).split("\n\n| mean spread")
    assert "| generated minus ..., points |" in first and "spread" not in first
    assert "| ... minus generated, spread, plus is better |" in second
    blocks = task_table(answers, 20).split("\n\n")
    assert [block.splitlines()[0].split(" | ")[0] for block in blocks] == ["| task", "| task, spread (lower is better)"]
    assert "reuse_new - generated" in blocks[1] and "generated - reuse_new" in blocks[0]
    variants = pd.concat([answers.assign(variant="reference"), answers.assign(variant="same")])
    assert variant_table(variants, 20).split("\n\n")[1].splitlines()[-1].endswith("| +0.000 [+0.000, +0.000] |")


def test_a_choice_takes_the_better_figure_and_never_one_that_is_no_number():
    values = {"a": np.array([np.nan, 0.0]), "b": np.array([1.0, 2.0]), "c": np.array([1.0, 1.0])}
    assert CellValues(ERROR, values).best(["a", "b", "c"]) == "c"
    assert CellValues(ACCURACY, values).best(["a", "b", "c"]) == "b"


def test_values_that_are_no_number_are_null_in_a_record_and_come_back_as_such():
    rows = [[1.0, float("inf")], [float("nan"), 0.1]]
    assert cells._as_json(rows) == [[1.0, None], [None, 0.1]]
    assert cells._as_json([]) == [] and cells._as_json([1.0, 0.25]) == [1.0, 0.25]
    np.testing.assert_array_equal(np.array(cells._as_json(rows), dtype=float), [[1.0, np.nan], [np.nan, 0.1]])
