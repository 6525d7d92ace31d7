"""An evidence suite, stage by stage: drift of the bases, screening of the tasks, then the pipeline on what was kept.

Every stage finds in the store what is done and goes on from there; tables go to `out`.

    run_stage(config, "screen")
"""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# (the stubs of pandas type every selection as a union that nothing can be done with)

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from oral_ray.bases.catalog import BaseRecord
from oral_ray.bases.corpora import load_corpus
from oral_ray.bases.loading import load_base
from oral_ray.bases.pretrain import perplexity, weight_change
from oral_ray.config import Config, fingerprint, with_overrides
from oral_ray.errors import EvaluationError
from oral_ray.evaluation import cells, evaluate
from oral_ray.evaluation.cells import Cell, CellValues, Unadapted
from oral_ray.evaluation.statistics import paired_difference
from oral_ray.local.parquet import read_frame
from oral_ray.modalities import Metric
from oral_ray.objects import probe
from oral_ray.pipeline import corpus
from oral_ray.pipeline.bases import resolve_bases
from oral_ray.pipeline.own_tasks import check_unseen, resolve_tasks
from oral_ray.pipeline.run import Run, begin_run, open_run
from oral_ray.pipeline.walk import train_seeds, walk
from oral_ray.study import page as study_report
from oral_ray.study.evidence import task_table, variant_table
from oral_ray.study.suite import Suite, screen_recipe

logger = logging.getLogger(__name__)
CORPORA = ("news", "code")
CONTROLS = ("majority", "base", "wrong_task", "shuffled")


def run_stage(config: Config, stage: str) -> str:
    """Run a stage, or several (`main`, `all`), and return its table as text; EvaluationError lists the stages there are."""
    several = {"main": MAIN, "all": tuple(STAGES)}
    if stage not in (*STAGES, *several):
        raise EvaluationError(
            f"unknown stage {stage!r}; there are {', '.join(STAGES)}, and all; main is {', '.join(MAIN)}"
        )
    evaluate.check_evaluation(config)
    Path(config.out).mkdir(parents=True, exist_ok=True)
    run = begin_run(config)
    probe(run.objects)
    suite = Suite(run)
    with run.session():
        tables = [STAGES[name](suite) for name in several.get(stage, (stage,))]
    return "\n\n".join(tables)


def tasks(suite: Suite) -> str:
    """The candidate tasks and how many examples each has."""
    found = [suite.candidates.task(task_id) for task_id in suite.config.tasks.ids]
    table = pd.DataFrame(
        {
            "task": task.id, "answers": ", ".join(task.labels) or "free text", "train": len(task.train),
            "validation": len(task.validation), "test": len(task.test), "prompt": task.prompt,
        }
        for task in found
    )  # fmt: skip
    return _written(suite.config, "tasks", table)


def drift(suite: Suite) -> str:
    """Make the base versions; how far each is from the first of its architecture: change of the weights, perplexities."""
    run = suite.with_bases
    first = {record.spec.digest: record for record in reversed(run.bases.values())}
    calls = [(measure_drift, (run.config, first[record.spec.digest], record)) for record in run.bases.values()]
    rows = run.on_cluster(calls, label="drift", retries=1)
    return _written(run.config, "drift", pd.DataFrame(rows))


def measure_drift(config: Config, first: BaseRecord, record: BaseRecord) -> dict[str, Any]:
    """Worker: the drift of one version from the first, kept as a record; perplexities of a causal language model only."""
    run = open_run(config)
    recipe = fingerprint("drift", 1, first.fingerprint, record.fingerprint, CORPORA)
    if (kept := run.records.get("drift", recipe)) is not None:
        return kept
    device = run.device
    base = load_base(record, device=device)
    row: dict[str, Any] = {"base": record.id, "weight_change": weight_change(load_base(first, device=device), base)}
    if base.writes_text:
        row |= {f"perplexity_{name}": perplexity(base, load_corpus(name)) for name in CORPORA}
    return run.records.commit("drift", recipe, row)


def screen(suite: Suite) -> str:
    """Keep a candidate task when its trained adapter beats every control on validation beyond the 95% interval.

    Controls: the majority answer, the calibrated base, the adapter of another task of the same form, and an adapter
    trained on shuffled answers; all on the first base version, from a fresh adapter whatever `corpus.start` says.
    """
    corpus_settings = suite.config.corpus.model_copy(update={"start": ""})
    run = suite.with_bases.over(suite.config.model_copy(update={"corpus": corpus_settings}))
    config, first = run.config, run.bases[run.config.bases.versions[0].id]
    ids = list(config.tasks.ids)
    trainings = {task_id: corpus.plan_run(run, task_id, [first], config.corpus.seeds[0]) for task_id in _both(ids)}
    entries = corpus.train_runs(run, list(trainings.values()))
    last = {task_id: entry.digests[-1] for task_id, entry in zip(trainings, entries, strict=True)}
    arms = {
        task_id: {
            "trained": last[task_id], "majority": Unadapted.MAJORITY, "base": Unadapted.BASE,
            "wrong_task": last[_other(run, task_id)], "shuffled": last[f"shuffled/{task_id}"],
        }
        for task_id in ids
    }  # fmt: skip
    limit = config.evaluation.max_validation
    wanted = [
        Cell(
            base_id=first.id,
            dtype=config.bases.dtype,
            task=task_id,
            digests=tuple(sorted(arms[task_id].values())),
            split="validation",
            limit=limit,
        )
        for task_id in ids
    ]
    scored = cells.score_all(run, wanted)
    table = pd.DataFrame([_screened(config, task_id, scored[first.id, task_id], arms[task_id]) for task_id in ids])
    run.records.commit("screen", screen_recipe(run), {"kept": _kept(table)})
    return _written(config, "screen", table)


def variant(suite: Suite, name: str) -> Run:
    """The run of a variant, with tables of its own; EvaluationError lists the variants there are."""
    config = suite.config
    variants = {"reference": (), **config.study.variants}
    if name not in variants:
        raise EvaluationError(f"unknown variant {name!r}; there are {', '.join(variants)}")
    changed = with_overrides(suite.run.config, (*config.study.common, *variants[name]))
    found = resolve_tasks(changed, suite.run.objects)
    found = found.model_copy(update={"name": f"{config.name}-{name}", "out": f"{config.out}/{name}"})
    run = suite.run.over(found)
    check_unseen(run.config, run.tasks)
    return run


def ablations(suite: Suite) -> str:
    """Every variant's `generated` and `wrong_prompt` arms beside those of the reference, which has no overrides of its own.

    Scores go to ablations.parquet, answers to ablation_answers.parquet; variants of earlier calls stay in both.
    """
    config = suite.config
    out = Path(config.out)
    scores_file, answers_file = out / "ablations.parquet", out / study_report.ABLATION_ANSWERS
    names = config.study.only or ("reference", *config.study.variants)
    variants = {name: variant(suite, name) for name in names}
    for run in variants.values():
        evaluate.check_evaluation(run.config)
    for name, run in variants.items():
        logger.info("variant %s", name)
        has_these_bases = run.config.bases == suite.run.config.bases
        trained = walk(run if has_these_bases else resolve_bases(run))
        _put_variant(scores_file, name, evaluate.evaluate_arms(trained, train_seeds(trained)))
        _put_variant(answers_file, name, read_frame(Path(run.config.out) / "answers.parquet"))
    return variant_table(read_frame(answers_file), config.evaluation.num_bootstrap)


def _put_variant(file: Path, name: str, table: pd.DataFrame) -> None:
    """Put a variant's table among those of the others, in place of what it had there."""
    parts = [table.assign(variant=name)]
    if file.is_file():
        known = read_frame(file)
        parts.insert(0, known[known["variant"] != name])
    pd.concat(parts, ignore_index=True).to_parquet(file)


def unseen(suite: Suite) -> str:
    """Score the tasks that no training saw; a table with intervals, and the same in unseen.md."""
    evaluate.unseen_tasks(suite.config)
    evaluate.evaluate_unseen(suite.trained, suite.generators)
    out = Path(suite.config.out) / "unseen"
    table = task_table(read_frame(out / "answers.parquet"), suite.config.evaluation.num_bootstrap)
    (out / "unseen.md").write_text(table + "\n")
    return table


def train_on_corpus(suite: Suite) -> str:
    """Train the corpus of the tasks that were kept."""
    return f"corpus: {len(suite.corpus)} runs"


def tokenise(suite: Suite) -> str:
    """Write its shards."""
    return f"shards: {suite.manifest.fingerprint}"


def train(suite: Suite) -> str:
    """Train the generator, and make it the current one of the configuration's name."""
    return f"generator: {suite.trained.recipe}"


def score(suite: Suite) -> str:
    """Score every arm; the tables of the evaluation go to `out`."""
    return f"evaluation: {len(suite.scores)} scores in {suite.config.out}"


def confusion(suite: Suite) -> str:
    """Score the adapter that is generated for each task on every task."""
    table = evaluate.evaluate_confusion(suite.run, suite.trained.recipe)
    return f"confusion: {len(table)} scores in {suite.config.out}"


def report(suite: Suite) -> str:
    """Rebuild tables, figures and page."""
    return study_report.write_page(suite.run, suite.scores)


STAGES: dict[str, Callable[[Suite], str]] = {
    "tasks": tasks,
    "bases": drift,
    "screen": screen,
    "corpus": train_on_corpus,
    "shards": tokenise,
    "train": train,
    "evaluate": score,
    "confusion": confusion,
    "unseen": unseen,
    "ablations": ablations,
    "report": report,
}


MAIN = ("bases", "screen", "corpus", "shards", "train", "evaluate", "confusion", "report")
"""The stages of the main table, in order."""


def _both(ids: list[str]) -> list[str]:
    return [*ids, *(f"shuffled/{task_id}" for task_id in ids)]


def _other(run: Run, task_id: str) -> str:
    """The next task of the same form: chosen labels or free text."""
    free = not run.task(task_id).labels
    same = [other for other in run.config.tasks.ids if (not run.task(other).labels) == free]
    return same[(same.index(task_id) + 1) % len(same)]


def _screened(config: Config, task_id: str, cell: CellValues, arms: Mapping[str, str]) -> dict[str, Any]:
    """The row of a task: the figure of every arm (its digest is given), and whether it is kept; a control that has no
    values (`majority`, where a metric counts no right answers) is left out."""
    values = {arm: cell.values[digest] for arm, digest in arms.items() if digest in cell.values}
    lows = {
        control: _lead(values["trained"], values[control], cell.metric, config)
        for control in CONTROLS
        if control in values
    }
    return (
        {"task": task_id, "n": len(values["trained"])}
        | {arm: cell.metric.figure(of_arm) for arm, of_arm in values.items()}
        | {"lowest_lead": min(lows.values()), "kept": min(lows.values()) > 0, "fails": _failed(lows)}
    )


def _lead(values: np.ndarray, control: np.ndarray, metric: Metric, config: Config) -> float:
    """The lower end of the paired 95% interval of what the values [N, ...] are better by than those of a control."""
    one, other = {"task": values[None]}, {"task": control[None]}
    return paired_difference(one, other, metric, config.evaluation.num_bootstrap).low


def _failed(lows: dict[str, float]) -> str:
    return ", ".join(control for control, low in lows.items() if low <= 0)


def _kept(table: pd.DataFrame) -> list[str]:
    return [str(row["task"]) for row in table.to_dict("records") if row["kept"]]


def _written(config: Config, name: str, table: pd.DataFrame) -> str:
    table.to_parquet(Path(config.out) / f"{name}.parquet")
    return table.to_string(index=False, float_format=lambda value: f"{value:.3f}")
