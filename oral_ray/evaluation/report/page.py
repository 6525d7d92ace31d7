"""The report of a run: tables of an output folder -> report.html (self-contained) and report.md. Reads tables only.

write_report(Path("out/quickstart"))
"""

# pyright: reportArgumentType=false
# (the stubs of pandas type every selection as a union that nothing can be done with)

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from oral_ray.errors import EvaluationError
from oral_ray.evaluation.answers import by_metric
from oral_ray.evaluation.arms.registry import arm_of, reference_names
from oral_ray.evaluation.report import figures
from oral_ray.evaluation.report.tables import arm_table, arms_text, difference_text, figure_text, read_table
from oral_ray.modalities import Metric


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
    scores, curve, distances, metrics = (
        read_table(folder, name) for name in ("scores", "curve", "distances", "metrics")
    )
    split = summary.get("config", {}).get("evaluation", {}).get("split", "test")
    [first, *further] = [metric for metric, _ in by_metric(table)]
    every = first.label.capitalize() if not further else "Figures"
    sections: list[tuple[str, bytes, str]] = [
        ("Arms by base version", figures.draw(figures.plot_arms, table), _caption(table, split)),
        (
            f"{every} by task",
            figures.draw(figures.plot_tasks, scores),
            f"{every} on the last evaluated base, a bar per arm.",
        ),
        (
            "Training of the generator",
            figures.draw(figures.plot_loss, metrics),
            "Training: mean loss, noise levels biased by training.high_noise_bias, plus task loss in the second phase. "
            "Validation: held-out adapters, uniform noise levels, averaged weights; not comparable.",
        ),
        (
            "Distance to the nearest corpus adapter",
            figures.draw(figures.plot_distances, distances),
            "Relative distance ||dW - dW'|| / ||dW'|| of every adapter to the nearest corpus adapter that is not itself. "
            "A generated adapter at zero would be a copy.",
        ),
        (
            "Sampling steps",
            figures.draw(figures.plot_curve, curve),
            f"{every} against sampling steps, a line per task.",
        ),
    ]
    (folder / "arms.png").write_bytes(sections[0][1])
    markdown = _markdown(table, sections, summary, command)
    (folder / "report.md").write_text(markdown, encoding="utf-8")
    page = _page(table, sections, summary, command)
    (folder / "report.html").write_text(page, encoding="utf-8")
    return folder / "report.html"


def _markdown(
    table: pd.DataFrame, sections: Sequence[tuple[str, bytes, str]], summary: dict[str, Any], command: str
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
    ]
    for metric, of_metric in by_metric(table):
        parts += _markdown_differences(metric, of_metric)
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


def _caption(table: pd.DataFrame, split: str) -> str:
    """Over what the means of the table are, metric by metric."""
    parts = []
    for metric, of_metric in by_metric(table):
        num_tasks, n = int(of_metric["num_tasks"].max()), int(of_metric["n"].max())
        which = f" of {metric.label}" if len(of_metric) < len(table) else ""
        parts.append(
            f"Mean{which} over {num_tasks} tasks, {n} {split} examples a base, 95% paired bootstrap intervals."
        )
    return " ".join(parts)


def _markdown_differences(metric: Metric, table: pd.DataFrame) -> list[str]:
    """The section of paired differences of one metric."""
    references = reference_names()
    lines = [
        "",
        f"## Differences on each base ({metric.difference_unit}, paired 95% interval)",
        "",
        f"| base | arm | {' | '.join(f'to {other}' for other in references)} |",
        f"|---|---|{'---|' * len(references)}",
    ]
    for row in table.to_dict("records"):
        differences = " | ".join(difference_text(metric, row, other) for other in references)
        lines.append(f"| {row['base']} | {row['arm']} | {differences} |")
    return lines


def _page(
    table: pd.DataFrame, sections: Sequence[tuple[str, bytes, str]], summary: dict[str, Any], command: str
) -> str:
    pictures = "".join(
        f'<section><h2>{html.escape(title)}</h2><img alt="{html.escape(title)}" '
        f'src="data:image/png;base64,{base64.b64encode(image).decode()}">'
        f"<p>{html.escape(caption)} Made by <code>{html.escape(command)}</code>.</p></section>"
        for title, image, caption in sections
    )
    differences = "".join(_html_differences(metric, of_metric) for metric, of_metric in by_metric(table))
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
<pre>{html.escape(arms_text(table))}</pre>{pictures}
<h2>Scores and paired differences</h2>
{differences}
<h2>Published</h2><table><tr><th>base</th><th>task</th><th>arm</th><th>uri</th></tr>{published}</table>
<h2>Time by stage</h2><table>{times}</table>
<h2>Resolved configuration</h2><pre>{config}</pre></html>
"""


def _html_differences(metric: Metric, table: pd.DataFrame) -> str:
    """The table of scores and paired differences of one metric."""
    references = reference_names()
    against = "".join(f"<th>{html.escape(metric.difference_unit)} to {other}</th>" for other in references)
    rows = []
    for row in table.to_dict("records"):
        differences = "".join(f"<td>{difference_text(metric, row, other)}</td>" for other in references)
        rows.append(
            f"<tr><td>{html.escape(row['base'])}</td>"
            f"<td><i style='background:{arm_of(row['arm']).colour}'></i>{row['arm']}</td>"
            f"<td>{figure_text(metric, row)}</td>{differences}</tr>"
        )
    heading = f"<tr><th>base</th><th>arm</th><th>{html.escape(metric.heading)}</th>{against}</tr>"
    return f"<table>{heading}\n{''.join(rows)}</table>"
