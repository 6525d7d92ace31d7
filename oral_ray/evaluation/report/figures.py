"""Figures of a report as PNG bytes, each arm in the colour of its file. The only importer of matplotlib.

png = draw(plot_arms, arm_table(folder, 2000))

A table with the column `metric` is drawn metric by metric, each on axes of its own: every plot gets the rows of one.
"""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# (the stubs of pandas type every selection as a union that nothing can be done with)

import io
import itertools
from collections.abc import Callable
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from oral_ray.evaluation.answers import by_metric
from oral_ray.evaluation.arms.registry import arm_of, present
from oral_ray.evaluation.report.tables import seen_by_base
from oral_ray.modalities import Metric

Plot = Callable[[Any, pd.DataFrame], None]


def draw(plot: Plot, table: pd.DataFrame, size: tuple[float, float] = (9, 4)) -> bytes:
    """A figure of a table as PNG, one plot per metric below each other; `size` of each in inches."""
    has_metrics = "metric" in table and len(table) > 0
    parts = [part for _, part in by_metric(table)] if has_metrics else [table]
    width, height = size
    figure, rows = plt.subplots(len(parts), figsize=(width, height * len(parts)), layout="constrained", squeeze=False)
    for [axes], part in zip(rows, parts, strict=True):
        plot(axes, part)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()


def plot_arms(axes: Any, table: pd.DataFrame) -> None:
    """Mean figure of every arm on every base version, with intervals."""
    bases = list(dict.fromkeys(table["base"]))
    arms = present(table["arm"])
    for i, arm in enumerate(arms):
        part = table[table["arm"] == arm].set_index("base").reindex(bases)
        x = np.arange(len(bases)) + (i - (len(arms) - 1) / 2) * 0.8 / len(arms)
        error = [part["mean"] - part["low"], part["high"] - part["mean"]]
        axes.bar(
            x, part["mean"], 0.8 / len(arms), yerr=error, color=arm_of(arm).colour, label=arm, error_kw={"lw": 0.8}
        )
    axes.set_xticks(
        range(len(bases)), [f"{b}\n{'seen' if seen else 'unseen'}" for b, seen in seen_by_base(table).items()]
    )
    axes.set_ylabel(_metric(table).label)
    axes.legend(ncols=6, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.18), frameon=False)


def plot_tasks(axes: Any, scores: pd.DataFrame) -> None:
    """The figure of each task on the last base version, a bar per arm."""
    part = scores[scores["base"] == scores["base"].iloc[-1]]
    pivot = part.pivot_table(index="task", columns="arm", values="value")
    arms = present(pivot)
    for i, arm in enumerate(arms):
        x = np.arange(len(pivot)) + (i - (len(arms) - 1) / 2) * 0.8 / len(arms)
        axes.bar(x, pivot[arm], 0.8 / len(arms), color=arm_of(arm).colour, label=arm)
    axes.set_xticks(range(len(pivot)), pivot.index)
    axes.set_ylabel(_metric(part).label)
    axes.legend(ncols=6, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.18), frameon=False)


def plot_loss(axes: Any, metrics: pd.DataFrame) -> None:
    """Training and validation loss against the step."""
    axes.plot(metrics["step"], metrics["loss"], label="training", color=arm_of("generated").colour)
    if metrics["validation_loss"].notna().any():
        axes.plot(
            metrics["step"], metrics["validation_loss"], label="validation (EMA)", color=arm_of("reuse_new").colour
        )
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def plot_distances(axes: Any, distances: pd.DataFrame) -> None:
    """Distance to the nearest corpus adapter, a point an adapter."""
    arms = present(distances["arm"])
    for i, arm in enumerate(arms):
        values = distances[distances["arm"] == arm]["distance"].to_numpy()
        axes.scatter(np.full(len(values), i), values, color=arm_of(arm).colour, s=24, alpha=0.6)
    axes.set_xticks(range(len(arms)), arms)
    axes.set_ylim(0, 1.1 * max(distances["distance"], default=1))
    axes.set_ylabel("relative distance")


def plot_curve(axes: Any, curve: pd.DataFrame) -> None:
    """The figure against sampling steps, a line per task."""
    for marker, (task, part) in zip(itertools.cycle("osD^v*"), curve.groupby("task"), strict=False):
        axes.plot(part["num_steps"], part["value"], marker=marker, label=task, color=arm_of("generated").colour)
    steps = sorted(set(curve["num_steps"]))
    axes.set_xscale("log")
    axes.set_xticks(steps, steps)
    axes.minorticks_off()
    axes.set_xlabel("sampling steps")
    if len(curve):
        metric = _metric(curve)
        if metric.is_fraction:
            axes.set_ylim(0, 1)  # differences of a few examples must not look like a trend
        else:
            axes.set_ylim(bottom=min(0, curve["value"].min()))
        axes.set_ylabel(metric.label)
        axes.legend(frameon=False)


def plot_confusion(axes: Any, confusion: pd.DataFrame) -> None:
    """The figure of the adapter that was asked for one task (rows) on every task (columns); what is better is darker."""
    metric = _metric(confusion)
    matrix = confusion.pivot(index="asked", columns="task", values="value")
    matrix = matrix.loc[sorted(matrix.index), sorted(matrix.columns)]
    values = matrix.to_numpy()
    low, high = (0.0, 1.0) if metric.is_fraction else (values.min(), values.max())
    axes.imshow(matrix, cmap="Blues" if metric.higher_is_better else "Blues_r", vmin=low, vmax=high, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        share = (value - low) / ((high - low) or 1.0)
        is_dark = (share if metric.higher_is_better else 1 - share) > 0.6
        text = f"{100 * value:.0f}" if metric.is_fraction else metric.text(value)
        axes.text(column, row, text, ha="center", va="center", color="w" if is_dark else "k")
    axes.set_xticks(range(len(matrix)), [name.rpartition("/")[2] for name in matrix], rotation=30, ha="right")
    axes.set_yticks(range(len(matrix)), matrix.index)
    axes.set_xlabel("task that is answered")
    axes.set_ylabel("prompt that was given")


def plot_variants(axes: Any, scores: pd.DataFrame) -> None:
    """Mean figure of `generated` and `wrong_prompt` of every variant, the best generator on top.

    Over the tasks that all variants have: one with more tasks than the others is compared on theirs.
    """
    metric = _metric(scores)
    shared = set.intersection(*(set(part["task"]) for _, part in scores.groupby("variant")))
    scores = scores.loc[scores["task"].isin(shared)]
    means = scores.groupby(["variant", "arm"])["value"].mean().unstack("arm")
    means = means.sort_values("generated", ascending=metric.higher_is_better)
    for i, arm in enumerate(("wrong_prompt", "generated")):
        axes.barh(np.arange(len(means)) + 0.4 * i - 0.2, means[arm], 0.4, color=arm_of(arm).colour, label=arm)
    axes.set_yticks(range(len(means)), means.index)
    axes.set_xlabel(metric.label)
    axes.legend(frameon=False)


def _metric(table: pd.DataFrame) -> Metric:
    """The one metric of a table."""
    [metric] = [metric for metric, _ in by_metric(table)]
    return metric
