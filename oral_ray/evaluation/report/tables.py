"""Tables of a report: arms by base version with their intervals, and the same as aligned text.

table = arm_table(Path("out/quickstart"), num_draws=2000)
text = arms_text(table)
"""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# (the stubs of pandas type every selection as a union that nothing can be done with)

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from oral_ray.errors import EvaluationError
from oral_ray.evaluation.answers import by_metric, values_by_task
from oral_ray.evaluation.arms.registry import present, reference_names
from oral_ray.evaluation.report.aligned import aligned
from oral_ray.evaluation.statistics import mean_over_tasks, paired_difference
from oral_ray.local.parquet import read_frame
from oral_ray.modalities import Metric

TABLES = ("scores", "answers", "curve", "distances", "metrics")


def arm_table(folder: Path, num_draws: int) -> pd.DataFrame:
    """One row per (metric, base, arm): the mean over the tasks of that metric with its 95% interval, and differences.

    Columns: metric, arm, base, base_seen, mean, low, high, num_tasks, n, seeds, and for the paired differences to the
    reference arms (positive where the arm of the row is better): vs_trained, vs_trained_low, ...
    """
    scores, answers = (read_table(folder, name) for name in ("scores", "answers"))
    rows: list[dict[str, Any]] = []
    for metric, of_metric in by_metric(scores):
        for base, of_base in of_metric.groupby("base", sort=False):
            chosen = answers[(answers["metric"] == metric.name) & (answers["base"] == base)]
            rows += _arm_rows(metric, of_base, chosen, num_draws)
    return pd.DataFrame(rows)


def _arm_rows(metric: Metric, scores: pd.DataFrame, answers: pd.DataFrame, num_draws: int) -> Iterator[dict[str, Any]]:
    """A row per arm, from the scores and answers on one base by one metric."""
    values = {arm: values_by_task(answers[answers["arm"] == arm]) for arm in present(scores["arm"])}
    for arm, of_arm in values.items():
        part = scores[scores["arm"] == arm]
        row: dict[str, Any] = {
            "metric": metric.name, "arm": arm, "base": part["base"].iloc[0],
            "base_seen": bool(part["base_seen"].iloc[0]), "num_tasks": len(of_arm),
            "n": int(part.groupby("task")["n"].first().sum()), "seeds": int(part["seed"].nunique()),
        }  # fmt: skip
        row |= mean_over_tasks(of_arm, metric, num_draws).model_dump()
        for other in reference_names():
            if other in values and arm != other:
                difference = paired_difference(of_arm, values[other], metric, num_draws)
                row[f"vs_{other}"] = difference.mean
                row[f"vs_{other}_low"], row[f"vs_{other}_high"] = difference.low, difference.high
        yield row


def arms_text(table: pd.DataFrame) -> str:
    """The table of arms as aligned text: a row per arm, a column per base, the figure with its interval.

    A block per metric, headed by its name; accuracies by themselves have no heading.
    """
    return _blocks(table, _metric_block)


def spread_text(folders: Sequence[Path]) -> str:
    """Runs with other seeds as one table: mean over runs of the mean over tasks, and (lowest, highest) run."""
    runs = pd.concat([read_table(folder, "scores").assign(run=i) for i, folder in enumerate(folders)])
    means = runs.groupby(["metric", "base", "base_seen", "arm", "run"], sort=False)["value"].mean().reset_index()
    return _blocks(means, _spread_block)


def _blocks(table: pd.DataFrame, block: Callable[[Metric, pd.DataFrame], list[list[str]]]) -> str:
    """Aligned text of the cells that `block` makes of the rows of each metric."""
    texts = []
    for metric, part in by_metric(table):
        bases = [f"{base} ({'seen' if seen else 'UNSEEN'})" for base, seen in seen_by_base(part).items()]
        lines = aligned([["arm", *bases], *block(metric, part)])
        is_alone = metric.counts_right_answers and len(part) == len(table)
        texts.append("\n".join(lines if is_alone else [f"{metric.heading}:", *lines]))
    return "\n\n".join(texts)


def _metric_block(metric: Metric, table: pd.DataFrame) -> list[list[str]]:
    lines = []
    for arm in dict.fromkeys(table["arm"]):
        cells = [arm]
        for base in seen_by_base(table):
            part = table[(table["arm"] == arm) & (table["base"] == base)]
            cells.append("-" if part.empty else figure_text(metric, part.iloc[0]))
        lines.append(cells)
    return lines


def _spread_block(metric: Metric, means: pd.DataFrame) -> list[list[str]]:
    lines = []
    for arm in present(means["arm"]):
        cells = [arm]
        for base in seen_by_base(means):
            values = means[(means["arm"] == arm) & (means["base"] == base)]["value"]
            mean, low, high = (metric.text(value) for value in (values.mean(), values.min(), values.max()))
            cells.append(f"{mean:>5} ({low}, {high})")
        lines.append(cells)
    return lines


def seen_by_base(table: pd.DataFrame) -> dict[str, bool]:
    """Base version -> whether the generator has seen it, in the order of the table."""
    return dict(zip(table["base"], table["base_seen"].astype(bool), strict=True))


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """A table of an output folder; EvaluationError when it is missing or damaged."""
    path = folder / f"{name}.parquet"
    if not path.is_file():
        raise EvaluationError(f"no {name}.parquet in {folder}; run the evaluation first, it writes {', '.join(TABLES)}")
    try:
        return read_frame(path)
    except (pa.ArrowException, OSError) as error:
        raise EvaluationError(f"{path} is damaged: {error}; run the evaluation again") from None


def figure_text(metric: Metric, row: Any) -> str:
    """Mean and interval of a row, as the metric prints them."""
    return f"{metric.text(row['mean']):>5} [{metric.text(row['low'])}, {metric.text(row['high'])}]"


def difference_text(metric: Metric, row: dict[str, Any], other: str) -> str:
    """By how much a row is better than another arm, with the paired interval; `-` where it was not measured."""
    value = row.get(f"vs_{other}")
    if value is None or value != value:  # NaN: not measured
        return "-"
    low, high = (metric.signed_text(row[f"vs_{other}_{end}"]) for end in ("low", "high"))
    return f"{metric.signed_text(value)} [{low}, {high}]"
