"""The page of an evidence suite: stored scores -> tables, figures and summary in the folder `study.page`.

Small enough to be committed: scores.parquet (one row a base, task, arm and seed), summary.json, README.md, figures.
"""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# (the stubs of pandas type every selection as a union that nothing can be done with)

import json
import shlex
import sys
from pathlib import Path

import pandas as pd

from oral_ray.config import Config, PretrainOrigin
from oral_ray.evaluation.report import figures
from oral_ray.evaluation.report.tables import arm_table, read_table
from oral_ray.local.parquet import read_frame
from oral_ray.pipeline import corpus
from oral_ray.pipeline.run import Run
from oral_ray.study.evidence import headline, headline_text, variant_table

FIGURES: dict[str, tuple[str, figures.Plot, str]] = {
    "arms": ("answers", figures.plot_arms, "Arms by base version, 95% intervals."),
    "tasks": ("scores", figures.plot_tasks, "Every task on the last version."),
    "distances": (
        "distances",
        figures.plot_distances,
        "Distance of every adapter to the nearest corpus adapter that is not itself; zero would be a copy.",
    ),
    "curve": ("curve", figures.plot_curve, "Every task against sampling steps."),
    "confusion": ("confusion", figures.plot_confusion, "The adapter asked for one task, on every task."),
    "ablations": ("ablations", figures.plot_variants, "Ablations: smaller budget, validation, an unseen version."),
}
"""Figure -> the table it needs, how it is drawn, its caption."""
ABLATION_ANSWERS = "ablation_answers.parquet"
TITLES = {"drift": "Drift of the base versions", "screen": "Screening (validation, first base version)"}
"""Tables of earlier stages that the page has, where these were run."""


def write_page(run: Run, scores: pd.DataFrame) -> str:
    """Rebuild tables, figures, headline and page in the folder `study.page` from the scores; returns the page."""
    config, lineages = run.config, lineages_of(run.config)
    line, t = zip(*(lineages[base] for base in scores["base"]), strict=True)
    scores = scores.assign(line=line, t=t, variant="default")
    answers = read_frame(Path(config.out) / "answers.parquet")
    rows = headline(scores, answers, config.evaluation.num_bootstrap)
    folder = Path(config.study.page or f"{config.out}/page")
    folder.mkdir(parents=True, exist_ok=True)
    scores.to_parquet(folder / "scores.parquet", compression="zstd")
    files = {name: Path(config.out) / f"{name}.parquet" for name in ("drift", "screen")}
    tables = {name: read_frame(file) for name, file in files.items() if file.is_file()}
    store = run.objects.uri.removeprefix("file://")
    command = f"oral-ray {shlex.join(sys.argv[1:])}"
    summary = {
        "command": command,
        "headline": rows,
        "tasks": list(config.tasks.ids),
        # by way of pandas: JSON has no NaN, and an encoder no perplexity
        **{name: json.loads(table.to_json(orient="records", double_precision=15)) for name, table in tables.items()},
        "cell_command": (
            f"oral-ray score {store}/adapters/DIGEST --base {store}/{config.bases.prefix}/BASE --task TASK "
            f"--split {config.evaluation.split} --limit {config.evaluation.max_test} --dtype {config.bases.dtype}"
        ),
        "config": config.model_dump(mode="json"),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    page = "\n\n".join(
        [
            f"# Evidence suite {config.name}",
            f"Made by `{command}` from the scores in the store.",
            headline_text(rows),
            *_figures(Path(config.out), folder, config.evaluation.num_bootstrap),
            *(f"## {TITLES[name]}\n\n{_markdown_table(table)}" for name, table in tables.items()),
            *_ablations(Path(config.out), folder, config.evaluation.num_bootstrap),
            f"Any cell, with the digest of scores.parquet: `{summary['cell_command']}`",
        ]
    )
    (folder / "README.md").write_text(page + "\n", encoding="utf-8")
    return page


def lineages_of(config: Config) -> dict[str, tuple[str, int]]:
    """Of every configured version: the corpus of its lineage (empty for the first one) and how many versions led to it."""
    parent = corpus.parents(config)
    found: dict[str, tuple[str, int]] = {}
    for version in config.bases.versions:
        line = version.origin.corpus if isinstance(version.origin, PretrainOrigin) else ""
        found[version.id] = (line, found[parent[version.id]][1] + 1 if version.id in parent else 0)
    return found


def _figures(out: Path, folder: Path, num_draws: int) -> list[str]:
    """Draw every figure whose table is there; a paragraph of Markdown each."""
    found = []
    for name, (table, plot, caption) in FIGURES.items():
        if (out / f"{table}.parquet").is_file():
            rows = arm_table(out, num_draws) if name == "arms" else read_table(out, table)
            (folder / f"{name}.png").write_bytes(figures.draw(plot, rows, size=(10, 5)))
            found.append(f"![{caption}]({name}.png)\n\n*{caption}*")
    return found


def _ablations(out: Path, folder: Path, num_draws: int) -> list[str]:
    """The table of the variants, where there were any; their scores are put beside those of the suite."""
    if not (out / ABLATION_ANSWERS).is_file():
        return []
    read_frame(out / "ablations.parquet").to_parquet(folder / "ablations.parquet", compression="zstd")
    return [f"## Ablations\n\n{variant_table(read_frame(out / ABLATION_ANSWERS), num_draws)}"]


def _markdown_table(table: pd.DataFrame) -> str:
    cells = [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in row] for row in table.itertuples(index=False)]
    rows = [list(table.columns), ["---"] * len(table.columns), *cells]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
