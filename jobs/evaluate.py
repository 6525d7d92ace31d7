"""Score every arm on the configured bases and tasks; write tables and the report to `out`.

Reads generators, corpus, tasks; writes control and generated adapters, `records/scores/`, and in `out`: scores.parquet,
answers.parquet, curve.parquet, distances.parquet, metrics.parquet, summary.json, report.html, report.md. With
`tasks.unseen` the same arms are scored on those tasks too (scores and answers in `out`/unseen). An ablation is a list
of overrides:

    python jobs/evaluate.py --config quickstart
    python jobs/evaluate.py --config quickstart condition.model=metadata out=out/no-probes
"""

import json
import shlex
import sys
import time
from pathlib import Path

import pandas as pd

from oral_ray.cli import run_job
from oral_ray.config import Config
from oral_ray.evaluation.evaluate import check_evaluation, evaluate_arms, evaluate_unseen
from oral_ray.evaluation.report.page import write_report
from oral_ray.evaluation.report.tables import arm_table, arms_text
from oral_ray.pipeline.bases import resolve_bases
from oral_ray.pipeline.run import begin_run
from oral_ray.pipeline.walk import train_seeds, walk


def main(config: Config) -> str:
    """Evaluate, write the report, and return the table of arms as text, for unseen tasks another one."""
    started = time.perf_counter()
    run = begin_run(config)
    config = run.config
    check_evaluation(config)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    with run.session():
        trained = walk(resolve_bases(run))
        generators = train_seeds(trained)
        evaluate_arms(trained, generators)
        folders = [out]
        if config.tasks.unseen:
            evaluate_unseen(trained, generators)
            folders.append(out / "unseen")
    pd.DataFrame(run.training_log(trained.recipe)).to_parquet(out / "metrics.parquet")
    summary = {
        "command": shlex.join(sys.argv),
        "config": config.model_dump(mode="json"),
        "generator": trained.recipe,
        "num_bootstrap": config.evaluation.num_bootstrap,
        "wall_s": {"evaluate": time.perf_counter() - started},
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1))
    report = write_report(out)
    tables = [arms_text(arm_table(folder, config.evaluation.num_bootstrap)) for folder in folders]
    return "\n\ntasks that no training saw:\n".join(tables) + f"\n\nreport: {report}"


if __name__ == "__main__":
    sys.exit(run_job(main, str(__doc__)))
