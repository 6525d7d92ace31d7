"""The report of a run: tables of an output folder -> report.html (self-contained) and report.md. Reads tables only.

write_report(Path("out/quickstart"))
"""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# (the stubs of pandas type every selection as a union that nothing can be done with)

import base64
import html
import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyarrow as pa

from oral_ray.config import ALL_ARMS
from oral_ray.errors import EvaluationError
from oral_ray.evaluation import Interval, mean_over_tasks, paired_difference

# One colour an arm, everywhere (Okabe-Ito, safe for colour-blind readers, and greys for what is no adapter).
PALETTE = {
    "base": "#999999", "majority": "#cccccc", "trained": "#000000", "reuse_old": "#56b4e9", "reuse_new": "#0072b2",
    "joint": "#009e73", "mean": "#b8a07a", "nearest": "#cc79a7", "regression": "#e69f00", "generated": "#d55e00",
    "held_out": "#8b3a00", "wrong_prompt": "#f0e442", "prompted": "#8c8c8c", "few_shot": "#666666",
    "joint_virtual": "#00684a", "multitask": "#aa4499", "multitask_instructed": "#661166", "refined_scratch": "#4d4d4d",
    "refined_reuse_new": "#004c75", "refined_generated": "#b34700", "best_trained": "#262626", "best_reuse_new": "#3399cc",
    "best_joint_virtual": "#33b38f", "best_generated": "#ff8533",
}  # fmt: skip
TABLES = ("scores", "answers", "curve", "distances", "metrics")


def arm_table(folder: Path, num_draws: int) -> pd.DataFrame:
    """One row an arm, one column a base: mean accuracy over tasks with its 95% interval, and differences.

    Columns: arm, base, base_seen, mean, low, high, num_tasks, n, seeds, and for the differences to `trained` and to
    `reuse_new` (paired): vs_trained, vs_trained_low, ...
    """
    scores, answers = (_read(folder, name) for name in ("scores", "answers"))
    rows = []
    for base in dict.fromkeys(scores["base"]):
        arms = {arm: _matrix(answers, base, arm) for arm in ALL_ARMS if arm in set(scores["arm"])}
        for arm, correct in arms.items():
            part = scores[(scores["base"] == base) & (scores["arm"] == arm)]
            if part.empty:
                continue
            row: dict[str, Any] = {
                "arm": arm, "base": base, "base_seen": bool(part["base_seen"].iloc[0]), "num_tasks": len(correct),
                "n": int(part.groupby("task")["n"].first().sum()), "seeds": int(part["seed"].nunique()),
            }  # fmt: skip
            row |= mean_over_tasks(correct, num_draws).model_dump()
            for other in ("trained", "reuse_new"):
                if arms.get(other) and arm != other:
                    difference: Interval = paired_difference(correct, arms[other], num_draws)
                    row |= {
                        f"vs_{other}{'' if k == 'mean' else '_' + k}": v for k, v in difference.model_dump().items()
                    }
            rows.append(row)
    return pd.DataFrame(rows)


def arms_text(table: pd.DataFrame) -> str:
    """The table of arms as aligned text: a row an arm, a column a base, accuracy in percent with its interval."""
    bases = _bases(table)
    lines = [["arm", *(f"{base} ({'seen' if seen else 'UNSEEN'})" for base, seen in bases.items())]]
    for arm in dict.fromkeys(table["arm"]):
        cells = [arm]
        for base in bases:
            part = table[(table["arm"] == arm) & (table["base"] == base)]
            cells.append("-" if part.empty else _percent(part.iloc[0]))
        lines.append(cells)
    return _aligned(lines)


def _bases(table: pd.DataFrame) -> dict[str, bool]:
    """Base version -> whether the generator has seen it, in the order of the table."""
    return dict(zip(table["base"], table["base_seen"].astype(bool), strict=True))


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def spread_text(folders: Sequence[Path]) -> str:
    """Runs with other seeds as one table: mean over runs of the mean accuracy over tasks, and (lowest, highest) run."""
    runs = pd.concat([_read(folder, "scores").assign(run=i) for i, folder in enumerate(folders)])
    means = runs.groupby(["base", "base_seen", "arm", "run"], sort=False)["value"].mean().reset_index()
    lines = [["arm", *(f"{base} ({'seen' if seen else 'UNSEEN'})" for base, seen in _bases(means).items())]]
    for arm in (arm for arm in ALL_ARMS if arm in set(means["arm"])):
        cells = [arm]
        for base in _bases(means):
            values = 100 * means[(means["arm"] == arm) & (means["base"] == base)]["value"]
            cells.append(f"{values.mean():5.1f} ({values.min():.1f}, {values.max():.1f})")
        lines.append(cells)
    return _aligned(lines)


def write_report(folder: Path) -> Path:
    """Write report.html, report.md and arms.png beside the tables of a folder; EvaluationError when one is missing.

    `command` of summary.json, what made the tables, stands below every figure.
    """
    try:
        summary = json.loads((folder / "summary.json").read_text()) if (folder / "summary.json").exists() else {}
    except ValueError:
        raise EvaluationError(f"{folder}/summary.json is damaged; delete it or run the evaluation again") from None
    command = summary.get("command", f"oral-ray report {folder}")
    table = arm_table(folder, num_draws=summary.get("num_bootstrap", 2000))
    table.to_parquet(folder / "arms.parquet")
    scores, curve, distances, metrics = (_read(folder, name) for name in ("scores", "curve", "distances", "metrics"))
    num_tasks, n = int(table["num_tasks"].max()), int(table["n"].max())
    split = summary.get("config", {}).get("evaluation", {}).get("split", "test")
    caption = f"Mean over {num_tasks} tasks, {n} {split} examples a base, 95% paired bootstrap intervals."
    sections: list[tuple[str, str, str]] = [
        ("Arms by base version", _figure(_plot_arms, table), caption),
        ("Accuracy by task", _figure(_plot_tasks, scores), "Accuracy on the last evaluated base, a bar an arm."),
        (
            "Training of the generator",
            _figure(_plot_loss, metrics),
            "Training: mean loss, noise levels biased by training.high_noise_bias, plus task loss in the second phase. "
            "Validation: held-out adapters, uniform noise levels, averaged weights; not comparable.",
        ),
        (
            "Distance to the nearest corpus adapter",
            _figure(_plot_distances, distances),
            "Relative distance ||dW - dW'|| / ||dW'|| of every adapter to the nearest corpus adapter that is not itself. "
            "A generated adapter at zero would be a copy.",
        ),
        ("Sampling steps", _figure(_plot_curve, curve), "Accuracy against sampling steps, a line a task."),
    ]
    (folder / "arms.png").write_bytes(base64.b64decode(sections[0][1]))
    markdown = _markdown(table, sections, summary, command)
    (folder / "report.md").write_text(markdown, encoding="utf-8")
    page = _page(table, sections, summary, command)
    (folder / "report.html").write_text(page, encoding="utf-8")
    return folder / "report.html"


def _read(folder: Path, name: str) -> pd.DataFrame:
    path = folder / f"{name}.parquet"
    if not path.is_file():
        raise EvaluationError(f"no {name}.parquet in {folder}; run the evaluation first, it writes {', '.join(TABLES)}")
    try:
        return pd.read_parquet(path)
    except (pa.ArrowException, OSError) as error:
        raise EvaluationError(f"{path} is damaged: {error}; run the evaluation again") from None


def _matrix(answers: pd.DataFrame, base: str, arm: str) -> dict[str, np.ndarray]:
    part = answers[(answers["base"] == base) & (answers["arm"] == arm)]
    return {
        str(task): group.pivot(index="seed", columns="example", values="correct").to_numpy(dtype=float)
        for task, group in part.groupby("task")
    }


def _percent(row: Any) -> str:
    return f"{100 * row['mean']:5.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def _figure(plot: Any, table: pd.DataFrame) -> str:
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    plot(axes, table)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()


def _plot_arms(axes: Any, table: pd.DataFrame) -> None:
    bases = list(dict.fromkeys(table["base"]))
    arms = [arm for arm in ALL_ARMS if arm in set(table["arm"])]
    for i, arm in enumerate(arms):
        part = table[table["arm"] == arm].set_index("base").reindex(bases)
        x = np.arange(len(bases)) + (i - (len(arms) - 1) / 2) * 0.8 / len(arms)
        error = [part["mean"] - part["low"], part["high"] - part["mean"]]
        axes.bar(x, part["mean"], 0.8 / len(arms), yerr=error, color=PALETTE[arm], label=arm, error_kw={"lw": 0.8})
    axes.set_xticks(range(len(bases)), [f"{b}\n{'seen' if seen else 'unseen'}" for b, seen in _bases(table).items()])
    axes.set_ylabel("accuracy")
    axes.legend(ncols=6, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.18), frameon=False)


def _plot_tasks(axes: Any, scores: pd.DataFrame) -> None:
    part = scores[scores["base"] == scores["base"].iloc[-1]]
    pivot = part.pivot_table(index="task", columns="arm", values="value")
    arms = [arm for arm in ALL_ARMS if arm in pivot]
    for i, arm in enumerate(arms):
        x = np.arange(len(pivot)) + (i - (len(arms) - 1) / 2) * 0.8 / len(arms)
        axes.bar(x, pivot[arm], 0.8 / len(arms), color=PALETTE[arm], label=arm)
    axes.set_xticks(range(len(pivot)), pivot.index)
    axes.set_ylabel("accuracy")
    axes.legend(ncols=6, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.18), frameon=False)


def _plot_loss(axes: Any, metrics: pd.DataFrame) -> None:
    axes.plot(metrics["step"], metrics["loss"], label="training", color=PALETTE["generated"])
    if metrics["validation_loss"].notna().any():
        axes.plot(metrics["step"], metrics["validation_loss"], label="validation (EMA)", color=PALETTE["reuse_new"])
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def _plot_distances(axes: Any, distances: pd.DataFrame) -> None:
    arms = [arm for arm in ALL_ARMS if arm in set(distances["arm"])]
    for i, arm in enumerate(arms):
        values = distances[distances["arm"] == arm]["distance"].to_numpy()
        axes.scatter(np.full(len(values), i), values, color=PALETTE[arm], s=24, alpha=0.6)
    axes.set_xticks(range(len(arms)), arms)
    axes.set_ylim(0, 1.1 * max(distances["distance"], default=1))
    axes.set_ylabel("relative distance")


def _plot_curve(axes: Any, curve: pd.DataFrame) -> None:
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


def _markdown(
    table: pd.DataFrame, sections: Sequence[tuple[str, str, str]], summary: dict[str, Any], command: str
) -> str:
    parts = [
        "# oral_ray report",
        "",
        f"Made by `{command}`.",
        "",
        "```",
        arms_text(table),
        "```",
        "",
        sections[0][2],
        "",
    ]
    parts += [
        "## Differences on each base (points, paired 95% interval)",
        "",
        "| base | arm | to trained | to reuse_new |",
    ]
    parts += ["|---|---|---|---|"]
    for row in table.to_dict("records"):
        parts.append(f"| {row['base']} | {row['arm']} | {_points(row, 'trained')} | {_points(row, 'reuse_new')} |")
    parts += ["", "## Seconds by stage", ""]
    parts += [f"- {stage}: {seconds:.1f} s" for stage, seconds in summary.get("wall_s", {}).items()]
    parts += ["", "## Published", ""]
    parts += [
        f"- {item['base']} / {item['task']}: {item['arm']}, {item['uri']}" for item in summary.get("published", ())
    ]
    parts += [
        "",
        "## Resolved configuration",
        "",
        "```json",
        json.dumps(summary.get("config", {}), indent=1),
        "```",
        "",
    ]
    return "\n".join(parts)


def _points(row: dict[str, Any], other: str) -> str:
    value = row.get(f"vs_{other}")
    if value is None or value != value:  # NaN: not measured
        return "-"
    return f"{100 * value:+.1f} [{100 * row[f'vs_{other}_low']:+.1f}, {100 * row[f'vs_{other}_high']:+.1f}]"


def _page(table: pd.DataFrame, sections: Sequence[tuple[str, str, str]], summary: dict[str, Any], command: str) -> str:
    figures = "".join(
        f'<section><h2>{html.escape(title)}</h2><img alt="{html.escape(title)}" src="data:image/png;base64,{image}">'
        f"<p>{html.escape(caption)} Made by <code>{html.escape(command)}</code>.</p></section>"
        for title, image, caption in sections
    )
    differences = "".join(
        f"<tr><td>{html.escape(row['base'])}</td><td><i style='background:{PALETTE[row['arm']]}'></i>{row['arm']}</td>"
        f"<td>{_percent(row)}</td><td>{_points(row, 'trained')}</td><td>{_points(row, 'reuse_new')}</td></tr>"
        for row in table.to_dict("records")
    )
    times = "".join(f"<tr><td>{k}</td><td>{v:.1f} s</td></tr>" for k, v in summary.get("wall_s", {}).items())
    published = "".join(
        f"<tr><td>{html.escape(i['base'])}</td><td>{html.escape(i['task'])}</td><td>{i['arm']}</td>"
        f"<td><code>{html.escape(i['uri'])}</code></td></tr>"
        for i in summary.get("published", ())
    )
    config = html.escape(json.dumps(summary.get("config", {}), indent=1))
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>oral_ray report</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
:root{{color-scheme:light dark}}body{{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}}
img{{max-width:100%;background:#fff;border-radius:4px}}table{{border-collapse:collapse;font-variant-numeric:tabular-nums}}
td,th{{padding:.2rem .8rem;border-bottom:1px solid #8884;text-align:left}}pre{{overflow:auto;font-size:12px}}
i{{display:inline-block;width:.8em;height:.8em;margin-right:.5em;border:1px solid #8888}}</style>
<h1>oral_ray report</h1><p>Made by <code>{html.escape(command)}</code>.</p>
<pre>{html.escape(arms_text(table))}</pre>{figures}
<h2>Scores and paired differences</h2>
<table><tr><th>base</th><th>arm</th><th>accuracy %</th><th>points to trained</th><th>points to reuse_new</th></tr>
{differences}</table>
<h2>Published</h2><table><tr><th>base</th><th>task</th><th>arm</th><th>uri</th></tr>{published}</table>
<h2>Time by stage</h2><table>{times}</table>
<h2>Resolved configuration</h2><pre>{config}</pre></html>
"""
