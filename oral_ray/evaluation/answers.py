"""answers.parquet: one row per example that an arm was scored on, with its value.

Columns: base, task, metric, arm, seed, example, value. Where a metric's values are rows of floats, `value` is NaN and the
row stands in the column `features`, which a table without such a metric does not have.

    frame = pd.concat([answer_rows(score, values) for ...])
    values_by_task(frame[frame["arm"] == "generated"])      # {"x": values_SN}

Letters: N examples, D features, S seeds.
"""

# pyright: reportAttributeAccessIssue=false, reportReturnType=false, reportGeneralTypeIssues=false
# (the stubs of pandas type every selection as a union that nothing can be done with)

from collections.abc import Iterator

import numpy as np
import pandas as pd

from oral_ray.evaluation.scoring import Score
from oral_ray.modalities import Metric, metric_named


def answer_rows(score: Score, values: np.ndarray) -> pd.DataFrame:
    """One row per example of a score; its values are [N] or [N, D]."""
    about = {name: getattr(score, name) for name in ("base", "task", "metric", "arm", "seed")}
    rows = pd.DataFrame(about | {"example": range(len(values)), "value": values if values.ndim == 1 else np.nan})
    return rows if values.ndim == 1 else rows.assign(features=list(values))


def values_by_task(answers: pd.DataFrame) -> dict[str, np.ndarray]:
    """The values [S, N] or [S, N, D] by task, of rows of one base, one arm and one metric."""
    found = {}
    for task, rows in answers.groupby("task"):
        has_features = "features" in rows and rows["features"].notna().all()
        grid = rows.pivot(index="seed", columns="example", values="features" if has_features else "value")
        found[str(task)] = np.array(grid.to_numpy().tolist(), dtype=float)
    return found


def by_metric(table: pd.DataFrame) -> Iterator[tuple[Metric, pd.DataFrame]]:
    """The rows of each metric of a table with the column `metric`: means over tasks are means of one metric."""
    for name in dict.fromkeys(table["metric"]):
        yield metric_named(name), table[table["metric"] == name]
