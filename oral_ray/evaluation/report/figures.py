"""Figures of a report as PNG bytes, each arm in the colour of its file. The only importer of matplotlib.

png = draw(plot_arms, arm_table(folder, 2000))
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

from oral_ray.evaluation.arms.registry import arm_of, present
from oral_ray.evaluation.report.tables import seen_by_base

Plot = Callable[[Any, pd.DataFrame], None]


def draw(plot: Plot, table: pd.DataFrame, size: tuple[float, float] = (9, 4)) -> bytes:
    """A figure of a table as PNG; `size` in inches."""
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    plot(axes, table)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()


def plot_arms(axes: Any, table: pd.DataFrame) -> None:
    """Mean accuracy of every arm on every base version, with intervals."""
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
    axes.set_ylabel("accuracy")
    axes.legend(ncols=6, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.18), frameon=False)


def plot_tasks(axes: Any, scores: pd.DataFrame) -> None:
    """Accuracy by task on the last base version, a bar an arm."""
    part = scores[scores["base"] == scores["base"].iloc[-1]]
    pivot = part.pivot_table(index="task", columns="arm", values="value")
    arms = present(pivot)
    for i, arm in enumerate(arms):
        x = np.arange(len(pivot)) + (i - (len(arms) - 1) / 2) * 0.8 / len(arms)
        axes.bar(x, pivot[arm], 0.8 / len(arms), color=arm_of(arm).colour, label=arm)
    axes.set_xticks(range(len(pivot)), pivot.index)
    axes.set_ylabel("accuracy")
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
    """Accuracy against sampling steps, a line a task."""
    for marker, (task, part) in zip(itertools.cycle("osD^v*"), curve.groupby("task"), strict=False):
        axes.plot(part["num_steps"], part["value"], marker=marker, label=task, color=arm_of("generated").colour)
    steps = sorted(set(curve["num_steps"]))
    axes.set_xscale("log")
    axes.set_xticks(steps, steps)
    axes.minorticks_off()
    axes.set_ylim(0, 1)  # differences of a few examples must not look like a trend
    axes.set_xlabel("sampling steps")
    axes.set_ylabel("accuracy")
    if len(curve):
        axes.legend(frameon=False)


def plot_confusion(axes: Any, confusion: pd.DataFrame) -> None:
    """Accuracy of the adapter that was asked for one task (rows) on every task (columns)."""
    matrix = confusion.pivot(index="asked", columns="task", values="value")
    matrix = matrix.loc[sorted(matrix.index), sorted(matrix.index)]
    axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(matrix.to_numpy()):
        axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color="w" if value > 0.6 else "k")
    axes.set_xticks(range(len(matrix)), [name.rpartition("/")[2] for name in matrix], rotation=30, ha="right")
    axes.set_yticks(range(len(matrix)), matrix.index)
    axes.set_xlabel("task that is answered")
    axes.set_ylabel("prompt that was given")


def plot_variants(axes: Any, scores: pd.DataFrame) -> None:
    """Mean accuracy of `generated` and `wrong_prompt` of every variant, the best generator first.

    Over the tasks that all variants have: one with more tasks than the others is compared on theirs.
    """
    shared = set.intersection(*(set(part["task"]) for _, part in scores.groupby("variant")))
    scores = scores.loc[scores["task"].isin(shared)]
    means = scores.groupby(["variant", "arm"])["value"].mean().unstack("arm").sort_values("generated")
    for i, arm in enumerate(("wrong_prompt", "generated")):
        axes.barh(np.arange(len(means)) + 0.4 * i - 0.2, means[arm], 0.4, color=arm_of(arm).colour, label=arm)
    axes.set_yticks(range(len(means)), means.index)
    axes.set_xlabel("accuracy")
    axes.legend(frameon=False)
