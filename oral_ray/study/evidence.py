"""Headline figures of an evidence suite from its tables: what holds on the versions that the generator never saw.

Figures are means over the tasks and versions of a group (a lineage and its t, or all unseen versions together),
with bootstrap intervals over examples and seeds, paired where two arms are compared. Tasks of several metrics make a row
per group and metric: a mean is of one metric.

Letters: N examples, D features, S seeds, V versions.
"""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from oral_ray.evaluation.answers import by_metric, values_by_task
from oral_ray.evaluation.arms.registry import all_arms, arm_names, present
from oral_ray.evaluation.statistics import Interval, figure_over_tasks, mean_over_tasks, paired_difference
from oral_ray.modalities import Metric, metric_named


@dataclass(frozen=True)
class ArmValues:
    """The values of every arm, by task, over some versions; `metric` makes one figure of them."""

    metric: Metric
    arms: dict[str, dict[str, np.ndarray]]

    def of_tasks(self, arm: str, tasks: Collection[str]) -> dict[str, np.ndarray]:
        """An arm's values of those of some tasks that it has."""
        return {task: values for task, values in self.arms.get(arm, {}).items() if task in tasks}

    def mean_text(self, arm: str, tasks: Collection[str]) -> str:
        """The mean of an arm over some tasks as it is printed; `-` where the arm has none of them."""
        values = self.of_tasks(arm, tasks)
        return self.metric.text(figure_over_tasks(values, self.metric)) if values else "-"


def headline(scores: pd.DataFrame, answers: pd.DataFrame, num_draws: int) -> list[dict[str, Any]]:
    """One row per metric and group: mean figure of every arm, and what `generated` is better by than others, with
    intervals; the same of `best_generated`, where every arm has the same few validation examples to choose by.

    A mean is of arms that all versions of the group have, a difference over the `num_bases` versions that have both arms.
    `scores` has the columns line and t beside those of the evaluation; `answers` one row per example.
    """
    rows = []
    for metric, of_metric in by_metric(scores):
        chosen = answers[answers["metric"] == metric.name]
        versions = {arm: set(part["base"]) for arm, part in of_metric.groupby("arm")}
        for name, bases in _groups(of_metric):
            num_tasks = of_metric[of_metric["base"].isin(bases)]["task"].nunique()
            about = {"group": name, "metric": metric.name, "num_bases": len(bases), "num_tasks": num_tasks}
            rows.append(about | _group_row(chosen, metric, bases, versions, num_draws))
    return rows


def _group_row(
    answers: pd.DataFrame, metric: Metric, bases: list[str], versions: Mapping[str, set[str]], num_draws: int
) -> dict[str, Any]:
    """Means and differences on the versions of a group; `versions` has those that each arm was scored on."""
    everywhere = _arm_values(answers, metric, bases, [arm for arm, on in versions.items() if on >= {*bases}])
    row: dict[str, Any] = {
        "arms": {
            arm: _rounded(mean_over_tasks(values, everywhere.metric, num_draws))
            for arm, values in everywhere.arms.items()
        }
    }
    for ours, others in _compared():
        row[f"{ours}_minus"] = {}
        for arm in (arm for arm in others if arm in versions and ours in versions):
            on = [base for base in bases if base in versions[arm] & versions[ours]]
            if not on:
                continue
            pair = everywhere if on == bases else _arm_values(answers, metric, on, [ours, arm])
            difference = paired_difference(pair.arms[ours], pair.arms[arm], pair.metric, num_draws)
            row[f"{ours}_minus"][arm] = {**_rounded(difference), "num_bases": len(on)}
    row["generated_over_trained"] = _ratio(row["arms"]) if metric.higher_is_better else None
    return row


def headline_text(rows: list[dict[str, Any]]) -> str:
    """The headline as Markdown tables of each metric: figures by arm, then differences, positive where better."""
    names = dict.fromkeys(row["metric"] for row in rows)
    texts = [_headline_block(metric_named(name), [row for row in rows if row["metric"] == name]) for name in names]
    return "\n\n".join(texts)


def _headline_block(metric: Metric, rows: list[dict[str, Any]]) -> str:
    groups = [row["group"] for row in rows]
    unit = ", %" if metric.is_fraction else ""
    lines = [f"| mean {metric.label}{unit} | {' | '.join(groups)} |", f"|---|{'---|' * len(groups)}"]
    for arm in present(arm for row in rows for arm in row["arms"]):
        cells = [_interval_text(metric, row["arms"].get(arm)) for row in rows]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    for ours, others in _compared():
        key = f"{ours}_minus"
        if not (shown := [arm for arm in others if any(arm in row[key] for row in rows)]):
            continue
        title = _compared_title(metric, ours, "...")
        lines += ["", f"| {title}, {metric.difference_unit} | {' | '.join(groups)} |", f"|---|{'---|' * len(groups)}"]
        for arm in shown:
            cells = [_signed_text(metric, row[key].get(arm)) + _part(row, key, arm) for row in rows]
            lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def task_table(answers: pd.DataFrame, num_draws: int) -> str:
    """Markdown, for each metric: a row per task and one of their mean, the figure of every arm, and what `generated` is
    better by than each other arm."""
    bases = [*answers["base"].unique()]
    blocks = []
    for metric, of_metric in by_metric(answers):
        values = _arm_values(of_metric, metric, bases, list(arm_names()))
        others = [arm for arm in values.arms if arm != "generated" and "generated" in values.arms]
        columns = [*values.arms, *(_compared_title(metric, "generated", arm) for arm in others)]
        lines = [f"| {_heading('task', metric)} | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
        tasks = sorted(of_metric["task"].unique())
        for name, chosen in [*((task, [task]) for task in tasks), ("mean", tasks)]:
            cells = [values.mean_text(arm, chosen) for arm in values.arms]
            ours = values.of_tasks("generated", chosen)
            for arm in others:
                less = paired_difference(ours, values.of_tasks(arm, chosen), values.metric, num_draws)
                cells.append(_signed_text(metric, less.model_dump()))
            lines.append(f"| {name} | {' | '.join(cells)} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def variant_table(answers: pd.DataFrame, num_draws: int, reference: str = "reference") -> str:
    """Markdown, for each metric: a row per variant of an ablation with the figures of `generated` and `wrong_prompt`, and
    what `generated` is better by than that of the reference, over the tasks that both have."""
    return "\n\n".join(
        _variant_block(metric, of_metric, num_draws, reference) for metric, of_metric in by_metric(answers)
    )


def _variant_block(metric: Metric, answers: pd.DataFrame, num_draws: int, reference: str) -> str:
    found = {
        str(name): _arm_values(part, metric, [*part["base"].unique()], ["generated", "wrong_prompt"])
        for name, part in answers.groupby("variant", sort=False)
    }
    first = found[reference].arms.get("generated", {}) if reference in found else {}
    title = _compared_title(metric, "generated", "reference")
    lines = [f"| {_heading('variant', metric)} | generated | wrong prompt | {title} |", "|---|---|---|---|"]
    for name, values in found.items():
        known = first or {task for of_arm in values.arms.values() for task in of_arm}
        ours, less = values.of_tasks("generated", known), None
        if ours and first and name != reference:
            theirs = {task: first[task] for task in ours}
            less = paired_difference(ours, theirs, values.metric, num_draws).model_dump()
        cells = [values.mean_text(arm, known) for arm in ("generated", "wrong_prompt")]
        lines.append(f"| {' | '.join([name, *cells, _signed_text(metric, less)])} |")
    return "\n".join(lines)


def _compared() -> list[tuple[str, tuple[str, ...]]]:
    """Each arm that has a table of differences, and the arms that are subtracted from it."""
    return [(arm.name, arm.against) for arm in all_arms() if arm.against]


def _groups(scores: pd.DataFrame) -> Iterator[tuple[str, list[str]]]:
    """(name, bases): every version by line and t, then all unseen ones together."""
    bases = scores.drop_duplicates("base")
    for row in bases.sort_values(["line", "t"]).to_dict("records"):
        yield f"{row['line'] or 'start'} t={row['t']}{'' if row['base_seen'] else ' (unseen)'}", [row["base"]]
    if unseen := list(bases[~bases["base_seen"]]["base"]):
        yield "all unseen", unseen


def _arm_values(answers: pd.DataFrame, metric: Metric, bases: list[str], arms: list[str]) -> ArmValues:
    """By arm, then by task: the values over the versions, so that a draw of examples is the same on every version.

    More versions do not make more examples. Values of a mean are averaged over the versions, [S, N]; a figure of a set is
    made on each version and averaged then, so their values stand beside each other, [S, N, V] or [S, N, V, D].
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    chosen = answers[answers["base"].isin(bases) & answers["arm"].isin(arms)]
    for arm, of_arm in chosen.groupby("arm"):
        found[str(arm)] = _mean_values(of_arm) if metric.is_mean else _stacked_values(of_arm)
    over_versions = metric if metric.is_mean else dataclasses.replace(metric, figure=_FigureOverVersions(metric))
    return ArmValues(over_versions, {arm: found[arm] for arm in present(found)})


def _mean_values(answers: pd.DataFrame) -> dict[str, np.ndarray]:
    found = {}
    for task, part in answers.groupby("task"):
        share = part.groupby(["seed", "example"])["value"].mean()
        found[task] = share.unstack("example").to_numpy(dtype=float)
    return found


def _stacked_values(answers: pd.DataFrame) -> dict[str, np.ndarray]:
    by_version = [values_by_task(part) for _, part in answers.groupby("base")]
    tasks = sorted({task for of_version in by_version for task in of_version})
    return {
        task: np.stack([of_version[task] for of_version in by_version if task in of_version], axis=2) for task in tasks
    }


@dataclass(frozen=True)
class _FigureOverVersions:
    """The mean over versions of each one's figure of the values [N, V, ...]."""

    metric: Metric

    def __call__(self, values: np.ndarray) -> float:
        return float(np.mean([self.metric.figure(values[:, version]) for version in range(values.shape[1])]))


def _ratio(arms: Mapping[str, dict[str, float]]) -> float | None:
    return (
        round(arms["generated"]["mean"] / arms["trained"]["mean"], 4)
        if arms.keys() >= {"trained", "generated"}
        else None
    )


def _rounded(interval: Interval) -> dict[str, float]:
    return {name: round(value, 6) for name, value in interval.model_dump().items()}


def _part(row: dict[str, Any], key: str, arm: str) -> str:
    """How many versions of the group a difference is over, where not all have the arm."""
    num = row[key].get(arm, {}).get("num_bases", row["num_bases"])
    return "" if num == row["num_bases"] else f" (on {num} of {row['num_bases']})"


def _compared_title(metric: Metric, ours: str, other: str) -> str:
    """What a column of differences has: ours minus the other, and the other minus ours where lower is better."""
    word = "minus" if other == "..." else "-"
    return f"{ours} {word} {other}" if metric.higher_is_better else f"{other} {word} {ours}"


def _heading(of: str, metric: Metric) -> str:
    """The first column's name, with the metric where it does not count right answers."""
    return of if metric.counts_right_answers else f"{of}, {metric.heading}"


def _interval_text(metric: Metric, interval: dict[str, float] | None) -> str:
    if interval is None:
        return "-"
    mean, low, high = (metric.text(interval[name]) for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _signed_text(metric: Metric, interval: dict[str, float] | None) -> str:
    if interval is None:
        return "-"
    mean, low, high = (metric.signed_text(interval[name]) for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"
