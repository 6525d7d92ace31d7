"""Headline figures: groups by line and t, all unseen versions together, differences with honest intervals."""

import numpy as np
import pandas as pd
import pytest

from oral_ray.study.evidence import headline, headline_text, task_table, variant_table

ACCURACY = {"base": 0.3, "trained": 0.7, "reuse_new": 0.6, "generated": 0.75, "wrong_prompt": 0.35}
NO_BRACKETS = str.maketrans("", "", "[],")
VERSIONS = {"t0": ("", 0, True), "news-t3": ("news", 3, False), "code-t3": ("code", 3, False)}


def tables(n: int = 400, copies: bool = False) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two tasks, two seeds; with `copies` every version has the same answers."""
    scores, answers = [], []
    for b, (base, (line, t, seen)) in enumerate(VERSIONS.items()):
        for task in ("x", "y"):
            difficulty = np.random.default_rng([0 if copies else b, task == "x"]).random(n)
            for arm, accuracy in ACCURACY.items():
                for seed in (0, 1):
                    correct = difficulty < accuracy
                    scores.append({"base": base, "base_seen": seen, "line": line, "t": t, "task": task,
                                   "metric": "accuracy", "arm": arm, "seed": seed, "value": correct.mean()})  # fmt: skip
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
    return pd.DataFrame(scores), pd.DataFrame(answers)


def test_every_version_and_all_unseen_ones_are_a_group():
    rows = headline(*tables(), 200)
    assert [row["group"] for row in rows] == ["start t=0", "code t=3 (unseen)", "news t=3 (unseen)", "all unseen"]
    assert [row["num_bases"] for row in rows] == [1, 1, 1, 2]
    for row in rows:
        assert row["num_tasks"] == 2
        assert row["arms"]["generated"]["mean"] == pytest.approx(0.75, abs=0.05)
        assert row["generated_over_trained"] == pytest.approx(
            row["arms"]["generated"]["mean"] / row["arms"]["trained"]["mean"], abs=1e-3
        )
        lead = row["generated_minus"]["reuse_new"]
        assert lead["mean"] == pytest.approx(0.15, abs=0.05) and 0 < lead["low"] < lead["mean"] < lead["high"]
        assert "joint" not in row["generated_minus"]


def test_more_versions_of_the_same_examples_make_no_interval_narrower():
    *_, one, both = headline(*tables(copies=True), 500)
    assert both["arms"]["trained"] == one["arms"]["trained"]
    assert both["generated_minus"]["trained"] == one["generated_minus"]["trained"] | {"num_bases": 2}


def test_an_arm_of_some_versions_is_compared_on_these_only():
    scores, answers = tables()
    gone = {"base": "code-t3", "arm": "reuse_new"}
    scores, answers = (t[~((t["base"] == gone["base"]) & (t["arm"] == gone["arm"]))] for t in (scores, answers))
    rows = {row["group"]: row for row in headline(scores, answers, 200)}
    alone, both = rows["news t=3 (unseen)"], rows["all unseen"]
    assert "reuse_new" in alone["arms"] and "reuse_new" not in both["arms"]
    assert both["generated_minus"]["reuse_new"] == alone["generated_minus"]["reuse_new"]
    assert "reuse_new" not in rows["code t=3 (unseen)"]["generated_minus"]
    assert "(on 1 of 2)" in headline_text(list(rows.values()))


def test_a_version_without_generated_adapters_has_its_means_and_no_differences():
    scores, answers = tables()
    scores, answers = (t[~((t["base"] == "code-t3") & (t["arm"] == "generated"))] for t in (scores, answers))
    rows = {row["group"]: row for row in headline(scores, answers, 200)}
    bare = rows["code t=3 (unseen)"]
    assert "trained" in bare["arms"] and bare["generated_minus"] == {} and bare["generated_over_trained"] is None
    assert rows["all unseen"]["generated_minus"]["trained"] == rows["news t=3 (unseen)"]["generated_minus"]["trained"]


def test_arms_with_the_same_privilege_are_compared_among_themselves():
    scores, answers = tables()
    source = {"best_generated": "trained", "best_joint": "wrong_prompt", "best_trained": "reuse_new"}

    def with_best(*arms: str) -> list[pd.DataFrame]:
        return [
            pd.concat([t, *(t[t["arm"] == source[arm]].assign(arm=arm) for arm in arms)]) for t in (scores, answers)
        ]

    for row in headline(*with_best(*source), 200):
        assert row["best_generated_minus"].keys() == {"best_joint", "best_trained"}
        assert row["best_generated_minus"]["best_joint"]["mean"] == pytest.approx(0.35, abs=0.05)
        assert row["generated_minus"].keys() == {"trained", "reuse_new", "wrong_prompt"}
    assert "| best_generated minus" in headline_text(headline(*with_best(*source), 200))
    alone = headline(*with_best("best_trained"), 200)
    assert all(row["best_generated_minus"] == {} for row in alone)
    assert "best_generated minus" not in headline_text(alone)


def test_the_text_has_a_row_an_arm_and_signed_differences():
    text = headline_text(headline(*tables(), 200))
    lines = text.splitlines()
    assert sum(line.startswith("| trained |") for line in lines) == 2
    assert "joint" not in text
    assert any(line.startswith("| reuse_new | +") for line in lines)
    assert all(line.count("|") == 6 for line in lines if line)


def test_a_mean_keeps_more_digits_than_its_text_shows():
    right = {"generated": 67, "trained": 60}
    scores = pd.DataFrame(
        {
            "base": "t0",
            "base_seen": True,
            "line": "",
            "t": 0,
            "task": "x",
            "metric": "accuracy",
            "arm": arm,
            "seed": 0,
            "value": k / 93,
        }
        for arm, k in right.items()
    )
    answers = pd.DataFrame(
        {"base": "t0", "task": "x", "metric": "accuracy", "arm": arm, "seed": 0, "example": i, "value": float(i < k)}
        for arm, k in right.items()
        for i in range(93)
    )
    [row] = headline(scores, answers, 50)
    assert row["arms"]["generated"]["mean"] == pytest.approx(67 / 93, abs=1e-6)


def test_a_table_of_tasks_has_every_arm_and_what_generated_is_better_by():
    _, answers = tables(100)
    of_x = answers[answers["task"] == "x"].groupby("arm")["value"].mean() * 100
    head, _, x, y, mean = (row.strip("| ").split(" | ") for row in task_table(answers, 200).splitlines())
    assert [row[0] for row in (head, x, y, mean)] == ["task", "x", "y", "mean"]
    assert x[head.index("generated")] == f"{of_x['generated']:.1f}"
    difference, low, high = map(float, x[head.index("generated - wrong_prompt")].translate(NO_BRACKETS).split())
    assert difference == pytest.approx(of_x["generated"] - of_x["wrong_prompt"], abs=0.06) and low < difference < high
    both = [float(row[head.index("generated - trained")].split()[0]) for row in (x, y, mean)]
    assert both[2] == pytest.approx((both[0] + both[1]) / 2, abs=0.11)
    others = task_table(answers[answers["arm"] != "generated"], 20).splitlines()
    assert "generated" not in others[0] and "trained" in others[0] and len(others) == 5


def test_a_table_of_variants_has_what_each_is_better_by_than_the_reference_on_tasks_that_both_have():
    def answers(variant: str, arm: str, task: str, right: int) -> pd.DataFrame:
        about = {"base": "t4", "task": task, "metric": "accuracy", "arm": arm, "seed": 0, "variant": variant}
        return pd.DataFrame({**about, "example": range(100)}).assign(value=lambda rows: 1.0 * (rows["example"] < right))

    parts = [
        answers("reference", "generated", "a", 60), answers("reference", "wrong_prompt", "a", 20),
        answers("more-tasks", "generated", "a", 70), answers("more-tasks", "generated", "b", 10),
    ]  # fmt: skip
    rows = [line.split(" | ") for line in variant_table(pd.concat(parts), 200).splitlines()[2:]]
    assert rows[0] == ["| reference", "60.0", "20.0", "- |"]
    assert rows[1][:3] == ["| more-tasks", "70.0", "-"] and rows[1][3].startswith("+10.0 [+")
    alone = variant_table(pd.concat(parts[2:]), 200).splitlines()[2]
    assert alone == "| more-tasks | 40.0 | - | - |"  # nothing to compare with, so all its tasks
