"""The report: every arm of the tables, in one self-contained page."""

import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from oral_ray.errors import EvaluationError
from oral_ray.evaluation.arms.registry import all_arms, arm_names, reference_names
from oral_ray.evaluation.report.figures import plot_variants
from oral_ray.evaluation.report.page import write_report
from oral_ray.evaluation.report.tables import TABLES, arm_table, arms_text

ALL_ARMS = arm_names()
AGAINST = reference_names()
PALETTE = {arm.name: arm.colour for arm in all_arms()}
BASES = {"base-t0": True, "base-t3": False}
MEANS = {arm: 0.5 + 0.01 * i for i, arm in enumerate(ALL_ARMS)}
SEEDS = {"generated": 2, "trained": 1}


def write_tables(
    folder: Path,
    arms: tuple[str, ...] = ALL_ARMS,
    tasks: tuple[str, ...] = ("toy", "<other>"),
    command: str = "make quickstart",
) -> Path:
    """The tables of an evaluation whose accuracies are known."""
    scores, answers = [], []
    for base, seen in BASES.items():
        for task in tasks:
            for arm in arms:
                for seed in range(SEEDS.get(arm, 1)):
                    correct = np.arange(50) < round(50 * MEANS[arm])
                    scores.append(
                        {"base": base, "base_seen": seen, "task": task, "arm": arm, "seed": seed, "metric": "accuracy",
                         "value": float(correct.mean()), "n": 50, "digest": ""}
                    )  # fmt: skip
                    answers += [
                        {
                            "base": base,
                            "task": task,
                            "metric": "accuracy",
                            "arm": arm,
                            "seed": seed,
                            "example": i,
                            "value": float(right),
                        }
                        for i, right in enumerate(correct)
                    ]
    tables = {
        "scores": scores,
        "answers": answers,
        "curve": [
            {"base": "base-t3", "task": tasks[0], "metric": "accuracy", "num_steps": n, "value": 0.7} for n in (1, 5, 20)
        ],
        "distances": [
            {"base": "base-t3", "task": tasks[0], "arm": arm, "seed": 0, "distance": 0.4, "nearest_task": "toy",
             "nearest_base": "base-t0"} for arm in ("trained", "generated")
        ],
        "metrics": [
            {"step": step, "loss": 1.0 / step, "validation_loss": None if step < 3 else 0.5} for step in (1, 2, 3)
        ],
    }  # fmt: skip
    for name, rows in tables.items():
        pd.DataFrame(rows).to_parquet(folder / f"{name}.parquet")
    summary = {
        "command": command,
        "num_bootstrap": 200,
        "wall_s": {"corpus": 12.5, "train": 3.25},
        "published": [{"base": "base-t3", "task": "<other>", "arm": "generated", "uri": "/store/published/base-t3/a1"}],
        "config": {"name": "test-run", "seed": 3},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_report_has_a_page_and_a_text_with_every_arm(tmp_path: Path) -> None:
    path = write_report(write_tables(tmp_path))
    assert path == tmp_path / "report.html"
    page, text = path.read_text(), (tmp_path / "report.md").read_text()
    for arm in ALL_ARMS:
        assert arm in page and arm in text
    for found in (page, text):
        assert "make quickstart" in found and "base-t3 (UNSEEN)" in found and "base-t0 (seen)" in found
        assert "test-run" in found and "12.5 s" in found and "/store/published/base-t3/a1" in found
    assert "2 tasks, 100 test examples" in page and "95% paired bootstrap intervals" in text


def test_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = write_report(write_tables(tmp_path)).read_text()
    sources = re.findall(r"(?:src|href)=[\"']([^\"']{0,40})", page)
    assert len(sources) == 5 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert "<script" not in page and "<link" not in page and "@import" not in page and "url(" not in page
    assert not re.search(r"https?://", page)


def test_names_and_commands_are_escaped(tmp_path: Path) -> None:
    page = write_report(write_tables(tmp_path, command="run <b>this</b>")).read_text()
    assert "<other>" not in page and "&lt;other&gt;" in page
    assert "<b>" not in page and "run &lt;b&gt;this&lt;/b&gt;" in page


def test_table_of_arms_has_the_accuracies_differences_and_counts(tmp_path: Path) -> None:
    table = arm_table(write_tables(tmp_path), 200).set_index(["base", "arm"])
    assert len(table) == len(BASES) * len(ALL_ARMS)
    for base, seen in BASES.items():
        for arm in ALL_ARMS:
            row = table.loc[base, arm]
            wanted = {a: round(50 * MEANS[a]) / 50 for a in (arm, *AGAINST)}
            assert row["mean"] == pytest.approx(wanted[arm]) and row["low"] <= row["mean"] <= row["high"]
            assert row["base_seen"] == seen and row["num_tasks"] == 2 and row["n"] == 100
            assert row["seeds"] == SEEDS.get(arm, 1)
            for other in AGAINST:
                if arm == other:
                    assert np.isnan(row[f"vs_{other}"])
                else:
                    assert row[f"vs_{other}"] == pytest.approx(wanted[arm] - wanted[other])
                    assert row[f"vs_{other}_low"] <= row[f"vs_{other}"] <= row[f"vs_{other}_high"]


def test_text_shows_percent_with_its_interval(tmp_path: Path) -> None:
    table = arm_table(write_tables(tmp_path), 200)
    line = next(line for line in arms_text(table).splitlines() if line.startswith("generated"))
    row = table[(table["arm"] == "generated")].iloc[0]
    assert f"{100 * row['mean']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]" in line


@pytest.mark.parametrize("name", TABLES)
def test_a_missing_table_is_named(tmp_path: Path, name: str) -> None:
    write_tables(tmp_path)
    (tmp_path / f"{name}.parquet").unlink()
    with pytest.raises(EvaluationError, match=rf"no {name}.parquet in .*run the evaluation first"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_arms_that_were_not_asked_for_are_left_out(tmp_path: Path) -> None:
    page = write_report(write_tables(tmp_path, ("base", "generated"))).read_text()
    assert "generated" in page and "wrong_prompt" not in page and "regression" not in page


def test_an_arm_that_one_base_lacks_is_a_dash_there(tmp_path: Path) -> None:
    write_tables(tmp_path)
    for name in ("scores", "answers"):
        rows = pd.read_parquet(tmp_path / f"{name}.parquet")
        rows[~((rows["base"] == "base-t3") & (rows["arm"] == "trained"))].to_parquet(tmp_path / f"{name}.parquet")
    text = write_report(tmp_path).with_suffix(".md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("trained"))
    assert line.rstrip().endswith("-")


def test_report_without_a_summary_is_still_written(tmp_path: Path) -> None:
    write_tables(tmp_path)
    (tmp_path / "summary.json").unlink()
    assert "generated" in write_report(tmp_path).read_text()


def test_every_arm_has_a_colour_of_its_own() -> None:
    assert PALETTE.keys() == set(ALL_ARMS) and len(set(PALETTE.values())) == len(ALL_ARMS)


def test_a_run_without_a_curve_or_distances_still_has_a_report(tmp_path: Path) -> None:
    write_tables(tmp_path, arms=("base", "majority"))
    for name in ("curve", "distances"):
        pd.read_parquet(tmp_path / f"{name}.parquet").iloc[:0].to_parquet(tmp_path / f"{name}.parquet")
    assert write_report(tmp_path).stat().st_size > 10_000


def test_variants_are_drawn_over_the_tasks_that_all_of_them_have():
    rows = [("reference", "a", 0.5), ("reference", "b", 0.7), ("more-tasks", "a", 0.4), ("more-tasks", "b", 0.6)]
    rows += [("more-tasks", "hard", 0.0)]
    scores = pd.DataFrame(
        {"variant": variant, "task": task, "metric": "accuracy", "arm": arm, "value": value / share}
        for variant, task, value in rows
        for arm, share in (("generated", 1), ("wrong_prompt", 2))
    )
    axes = plt.figure().subplots()
    plot_variants(axes, scores)
    widths = {label.get_text(): [] for label in axes.get_yticklabels()}
    for bars in axes.containers:
        for name, bar in zip(widths, bars, strict=True):
            widths[name].append(round(bar.get_width(), 3))
    plt.close()
    assert widths == {"more-tasks": [0.25, 0.5], "reference": [0.3, 0.6]}
