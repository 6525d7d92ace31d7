"""Headline figures of an evidence suite from its tables: what holds on the versions that the generator never saw.

Figures are means over the tasks and versions of a group (a line of descent and its t, or all unseen versions together),
with bootstrap intervals over examples and seeds, paired where two arms are compared.
"""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from oral_ray.evaluation.arms.registry import all_arms, arm_names, present
from oral_ray.evaluation.statistics import Interval, mean_over_tasks, paired_difference

Correct = dict[str, np.ndarray]  # task -> [S, N]


def headline(scores: pd.DataFrame, answers: pd.DataFrame, num_draws: int) -> list[dict[str, Any]]:
    """One row a group: mean accuracy of every arm, and `generated` minus others, with intervals; the same of
    `best_generated`, where every arm has the same few validation examples to choose by.

    A mean is of arms that all versions of the group have, a difference over the `num_bases` versions that have both arms.
    `scores` has the columns line and t beside those of the evaluation; `answers` one row an example.
    """
    rows, versions = [], {arm: set(part["base"]) for arm, part in scores.groupby("arm")}
    for name, bases in _groups(scores):
        everywhere = _correct(answers, bases, [arm for arm, on in versions.items() if on >= {*bases}])
        num_tasks = scores[scores["base"].isin(bases)]["task"].nunique()
        row: dict[str, Any] = {"group": name, "num_bases": len(bases), "num_tasks": num_tasks}
        row["arms"] = {arm: _rounded(mean_over_tasks(correct, num_draws)) for arm, correct in everywhere.items()}
        for ours, others in _compared():
            row[f"{ours}_minus"] = {}
            for arm in (arm for arm in others if arm in versions and ours in versions):
                on = [base for base in bases if base in versions[arm] & versions[ours]]
                if not on:
                    continue
                pair = everywhere if on == bases else _correct(answers, on, [ours, arm])
                difference = paired_difference(pair[ours], pair[arm], num_draws)
                row[f"{ours}_minus"][arm] = {**_rounded(difference), "num_bases": len(on)}
        row["generated_over_trained"] = _ratio(row["arms"])
        rows.append(row)
    return rows


def headline_text(rows: list[dict[str, Any]]) -> str:
    """The headline as Markdown tables: accuracies in percent by arm, then differences in points."""
    groups = [row["group"] for row in rows]
    lines = [f"| mean accuracy, % | {' | '.join(groups)} |", f"|---|{'---|' * len(groups)}"]
    for arm in present(arm for row in rows for arm in row["arms"]):
        lines.append(f"| {arm} | {' | '.join(_percent(row['arms'].get(arm)) for row in rows)} |")
    for ours, others in _compared():
        key = f"{ours}_minus"
        if not (shown := [arm for arm in others if any(arm in row[key] for row in rows)]):
            continue
        lines += ["", f"| {ours} minus ..., points | {' | '.join(groups)} |", f"|---|{'---|' * len(groups)}"]
        for arm in shown:
            cells = [_percent(row[key].get(arm), signed=True) + _part(row, key, arm) for row in rows]
            lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def task_table(answers: pd.DataFrame, num_draws: int) -> str:
    """Markdown, a row a task and one of their mean: accuracies in percent, `generated` minus each other arm in points."""
    correct = _correct(answers, [*answers["base"].unique()], list(arm_names()))
    others = [arm for arm in correct if arm != "generated" and "generated" in correct]
    lines = [f"| task | {' | '.join([*correct, *(f'generated - {arm}' for arm in others)])} |"]
    lines.append(f"|---|{'---|' * (len(correct) + len(others))}")
    tasks = sorted(answers["task"].unique())
    for name, chosen in [*((task, [task]) for task in tasks), ("mean", tasks)]:
        part = {arm: {task: of_arm[task] for task in chosen} for arm, of_arm in correct.items()}
        cells = [_mean_percent(of_arm) for of_arm in part.values()]
        for arm in others:
            difference = paired_difference(part["generated"], part[arm], num_draws)
            cells.append(_percent(difference.model_dump(), signed=True))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def variant_table(answers: pd.DataFrame, num_draws: int, reference: str = "reference") -> str:
    """Markdown, a row a variant of an ablation: `generated` and `wrong_prompt` in percent, `generated` minus that of the
    reference in points, over the tasks that both have."""
    found = {
        str(name): _correct(part, [*part["base"].unique()], ["generated", "wrong_prompt"])
        for name, part in answers.groupby("variant", sort=False)
    }
    first = found.get(reference, {}).get("generated", {})
    lines = ["| variant | generated | wrong prompt | generated - reference |", "|---|---|---|---|"]
    for name, arms in found.items():
        both = {
            arm: {task: rows for task, rows in of_arm.items() if task in (first or of_arm)}
            for arm, of_arm in arms.items()
        }
        cells = [_mean_percent(both[arm]) if both.get(arm) else "-" for arm in ("generated", "wrong_prompt")]
        ours, less = both.get("generated", {}), None
        if ours and first and name != reference:
            less = paired_difference(ours, {task: first[task] for task in ours}, num_draws).model_dump()
        lines.append(f"| {' | '.join([name, *cells, _percent(less, signed=True)])} |")
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


def _correct(answers: pd.DataFrame, bases: list[str], arms: list[str]) -> dict[str, Correct]:
    """By arm, then by task: how often an answer is right over the versions, seeds by examples.

    A draw of examples is thus the same on every version, as the examples are: more versions do not make more examples.
    """
    found: dict[str, Correct] = {}
    chosen = answers["base"].isin(bases) & answers["arm"].isin(arms)
    for (arm, task), part in answers[chosen].groupby(["arm", "task"]):
        share = part.groupby(["seed", "example"])["correct"].mean()
        found.setdefault(arm, {})[task] = share.unstack("example").to_numpy(dtype=float)
    return {arm: found[arm] for arm in present(found)}


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


def _mean_percent(correct: Correct) -> str:
    """The mean over tasks of their accuracies."""
    return f"{100 * np.mean([rows.mean() for rows in correct.values()]):.1f}"


def _percent(interval: dict[str, float] | None, signed: bool = False) -> str:
    if interval is None:
        return "-"
    mean, low, high = (100 * interval[name] for name in ("mean", "low", "high"))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]" if signed else f"{mean:.1f} [{low:.1f}, {high:.1f}]"
