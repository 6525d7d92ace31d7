"""Tables of a report: arms by base version with their intervals, and the same as aligned text.

table = arm_table(Path("out/quickstart"), num_draws=2000)
text = arms_text(table)
"""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# (the stubs of pandas type every selection as a union that nothing can be done with)

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from oral_ray.errors import EvaluationError
from oral_ray.evaluation.arms.registry import present, reference_names
from oral_ray.evaluation.report.aligned import aligned
from oral_ray.evaluation.statistics import Interval, mean_over_tasks, paired_difference
from oral_ray.local.parquet import read_frame

TABLES = ("scores", "answers", "curve", "distances", "metrics")


def arm_table(folder: Path, num_draws: int) -> pd.DataFrame:
    """One row an arm, one column a base: mean accuracy over tasks with its 95% interval, and differences.

    Columns: arm, base, base_seen, mean, low, high, num_tasks, n, seeds, and for the paired differences to the
    reference arms: vs_trained, vs_trained_low, ...
    """
    scores, answers = (read_table(folder, name) for name in ("scores", "answers"))
    rows = []
    for base in dict.fromkeys(scores["base"]):
        arms = {arm: _matrix(answers, base, arm) for arm in present(scores["arm"])}
        for arm, correct in arms.items():
            part = scores[(scores["base"] == base) & (scores["arm"] == arm)]
            if part.empty:
                continue
            row: dict[str, Any] = {
                "arm": arm, "base": base, "base_seen": bool(part["base_seen"].iloc[0]), "num_tasks": len(correct),
                "n": int(part.groupby("task")["n"].first().sum()), "seeds": int(part["seed"].nunique()),
            }  # fmt: skip
            row |= mean_over_tasks(correct, num_draws).model_dump()
            for other in reference_names():
                if arms.get(other) and arm != other:
                    difference: Interval = paired_difference(correct, arms[other], num_draws)
                    row |= {
                        f"vs_{other}{'' if k == 'mean' else '_' + k}": v for k, v in difference.model_dump().items()
                    }
            rows.append(row)
    return pd.DataFrame(rows)


def arms_text(table: pd.DataFrame) -> str:
    """The table of arms as aligned text: a row an arm, a column a base, accuracy in percent with its interval."""
    bases = seen_by_base(table)
    lines = [["arm", *(f"{base} ({'seen' if seen else 'UNSEEN'})" for base, seen in bases.items())]]
    for arm in dict.fromkeys(table["arm"]):
        cells = [arm]
        for base in bases:
            part = table[(table["arm"] == arm) & (table["base"] == base)]
            cells.append("-" if part.empty else percent(part.iloc[0]))
        lines.append(cells)
    return "\n".join(aligned(lines))


def spread_text(folders: Sequence[Path]) -> str:
    """Runs with other seeds as one table: mean over runs of the mean accuracy over tasks, and (lowest, highest) run."""
    runs = pd.concat([read_table(folder, "scores").assign(run=i) for i, folder in enumerate(folders)])
    means = runs.groupby(["base", "base_seen", "arm", "run"], sort=False)["value"].mean().reset_index()
    lines = [["arm", *(f"{base} ({'seen' if seen else 'UNSEEN'})" for base, seen in seen_by_base(means).items())]]
    for arm in present(means["arm"]):
        cells = [arm]
        for base in seen_by_base(means):
            values = 100 * means[(means["arm"] == arm) & (means["base"] == base)]["value"]
            cells.append(f"{values.mean():5.1f} ({values.min():.1f}, {values.max():.1f})")
        lines.append(cells)
    return "\n".join(aligned(lines))


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


def percent(row: Any) -> str:
    """Mean and interval of a row, in percent."""
    return f"{100 * row['mean']:5.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def points(row: dict[str, Any], other: str) -> str:
    """The paired difference of a row to another arm, in points, `-` where it was not measured."""
    value = row.get(f"vs_{other}")
    if value is None or value != value:  # NaN: not measured
        return "-"
    return f"{100 * value:+.1f} [{100 * row[f'vs_{other}_low']:+.1f}, {100 * row[f'vs_{other}_high']:+.1f}]"


def _matrix(answers: pd.DataFrame, base: str, arm: str) -> dict[str, np.ndarray]:
    part = answers[(answers["base"] == base) & (answers["arm"] == arm)]
    return {
        str(task): group.pivot(index="seed", columns="example", values="correct").to_numpy(dtype=float)
        for task, group in part.groupby("task")
    }
