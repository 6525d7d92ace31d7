"""Figures of a report as PNG bytes, one colour an arm everywhere. The only importer of matplotlib.

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

from oral_ray.config import ALL_ARMS
from oral_ray.evaluation.report.tables import seen_by_base

Plot = Callable[[Any, pd.DataFrame], None]
# One colour an arm, everywhere (Okabe-Ito, safe for colour-blind readers, and greys for what is no adapter).
PALETTE = {
    "base": "#999999", "majority": "#cccccc", "trained": "#000000", "trained_long": "#5a5a5a", "reuse_old": "#56b4e9",
    "reuse_new": "#0072b2",
    "joint": "#009e73", "mean": "#b8a07a", "nearest": "#cc79a7", "regression": "#e69f00", "generated": "#d55e00",
    "held_out": "#8b3a00", "wrong_prompt": "#f0e442", "prompted": "#8c8c8c", "few_shot": "#666666",
    "joint_virtual": "#00684a", "multitask": "#aa4499", "multitask_instructed": "#661166", "refined_scratch": "#4d4d4d",
    "refined_reuse_new": "#004c75", "refined_joint": "#005c43", "refined_generated": "#b34700", "best_trained": "#262626",
    "best_reuse_new": "#3399cc", "best_joint": "#66c2a5", "best_joint_virtual": "#33b38f", "best_generated": "#ff8533",
}  # fmt: skip


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
    arms = [arm for arm in ALL_ARMS if arm in set(table["arm"])]
    for i, arm in enumerate(arms):
        part = table[table["arm"] == arm].set_index("base").reindex(bases)
        x = np.arange(len(bases)) + (i - (len(arms) - 1) / 2) * 0.8 / len(arms)
        error = [part["mean"] - part["low"], part["high"] - part["mean"]]
        axes.bar(x, part["mean"], 0.8 / len(arms), yerr=error, color=PALETTE[arm], label=arm, error_kw={"lw": 0.8})
    axes.set_xticks(
        range(len(bases)), [f"{b}\n{'seen' if seen else 'unseen'}" for b, seen in seen_by_base(table).items()]
    )
    axes.set_ylabel("accuracy")
    axes.legend(ncols=6, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.18), frameon=False)


def plot_tasks(axes: Any, scores: pd.DataFrame) -> None:
    """Accuracy by task on the last base version, a bar an arm."""
    part = scores[scores["base"] == scores["base"].iloc[-1]]
    pivot = part.pivot_table(index="task", columns="arm", values="value")
    arms = [arm for arm in ALL_ARMS if arm in pivot]
    for i, arm in enumerate(arms):
        x = np.arange(len(pivot)) + (i - (len(arms) - 1) / 2) * 0.8 / len(arms)
        axes.bar(x, pivot[arm], 0.8 / len(arms), color=PALETTE[arm], label=arm)
    axes.set_xticks(range(len(pivot)), pivot.index)
    axes.set_ylabel("accuracy")
    axes.legend(ncols=6, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.18), frameon=False)


def plot_loss(axes: Any, metrics: pd.DataFrame) -> None:
    """Training and validation loss against the step."""
    axes.plot(metrics["step"], metrics["loss"], label="training", color=PALETTE["generated"])
    if metrics["validation_loss"].notna().any():
        axes.plot(metrics["step"], metrics["validation_loss"], label="validation (EMA)", color=PALETTE["reuse_new"])
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def plot_distances(axes: Any, distances: pd.DataFrame) -> None:
    """Distance to the nearest corpus adapter, a point an adapter."""
    arms = [arm for arm in ALL_ARMS if arm in set(distances["arm"])]
    for i, arm in enumerate(arms):
        values = distances[distances["arm"] == arm]["distance"].to_numpy()
        axes.scatter(np.full(len(values), i), values, color=PALETTE[arm], s=24, alpha=0.6)
    axes.set_xticks(range(len(arms)), arms)
    axes.set_ylim(0, 1.1 * max(distances["distance"], default=1))
    axes.set_ylabel("relative distance")


def plot_curve(axes: Any, curve: pd.DataFrame) -> None:
    """Accuracy against sampling steps, a line a task."""
    for marker, (task, part) in zip(itertools.cycle("osD^v*"), curve.groupby("task"), strict=False):
        axes.plot(part["num_steps"], part["value"], marker=marker, label=task, color=PALETTE["generated"])
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
        axes.barh(np.arange(len(means)) + 0.4 * i - 0.2, means[arm], 0.4, color=PALETTE[arm], label=arm)
    axes.set_yticks(range(len(means)), means.index)
    axes.set_xlabel("accuracy")
    axes.legend(frameon=False)
