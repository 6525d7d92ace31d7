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
from oral_ray.cluster import Call, device_of, run_tasks, session
from oral_ray.config import Config, fingerprint, with_overrides
from oral_ray.errors import EvaluationError
from oral_ray.evaluation import cells, evaluate
from oral_ray.evaluation.cells import Cell, CellValues, Unadapted
from oral_ray.evaluation.statistics import Metric, paired_difference
from oral_ray.local.parquet import read_frame
from oral_ray.objects import open_objects, probe
from oral_ray.pipeline import bases, corpus, shards, train
from oral_ray.pipeline.own_tasks import enter_tasks, task_of
from oral_ray.store.records import Records
from oral_ray.study import page as study_report
from oral_ray.study.evidence import task_table, variant_table

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
    probe(open_objects(config.store))
    config = enter_tasks(config)
    with session(config.cluster, config.determinism):
        tables = [STAGES[name](config) for name in several.get(stage, (stage,))]
    return "\n\n".join(tables)


def tasks(config: Config) -> str:
    """The candidate tasks and how many examples each has."""
    found = [task_of(config, task_id) for task_id in config.tasks.ids]
    table = pd.DataFrame(
        {
            "task": task.id, "answers": ", ".join(task.labels) or "free text", "train": len(task.train),
            "validation": len(task.validation), "test": len(task.test), "prompt": task.prompt,
        }
        for task in found
    )  # fmt: skip
    return _written(config, "tasks", table)


def drift(config: Config) -> str:
    """Make the base versions; how far each is from the first of its architecture: change of the weights, perplexities."""
    found = bases.run(config)
    first = {record.spec.digest: record for record in reversed(found.values())}
    calls: list[Call] = [(measure_drift, (config, first[record.spec.digest], record)) for record in found.values()]
    rows = run_tasks(calls, config.cluster, determinism=config.determinism, retries=1, label="drift")
    return _written(config, "drift", pd.DataFrame(rows))


def measure_drift(config: Config, first: BaseRecord, record: BaseRecord) -> dict[str, Any]:
    """Worker: the drift of one version from the first, kept as a record; perplexities of a causal language model only."""
    records = Records(open_objects(config.store))
    recipe = fingerprint("drift", 1, first.fingerprint, record.fingerprint, CORPORA)
    if (kept := records.get("drift", recipe)) is not None:
        return kept
    device = device_of(config.cluster.gpus_per_task)
    base = load_base(record, device=device)
    row: dict[str, Any] = {"base": record.id, "weight_change": weight_change(load_base(first, device=device), base)}
    if record.spec.kind == "causal":
        row |= {f"perplexity_{name}": perplexity(base, load_corpus(name)) for name in CORPORA}
    return records.commit("drift", recipe, row)


def screen(config: Config) -> str:
    """Keep a candidate task when its trained adapter beats every control on validation beyond the 95% interval.

    Controls: the majority answer, the calibrated base, the adapter of another task of the same form, and an adapter
    trained on shuffled answers; all on the first base version, from a fresh adapter whatever `corpus.start` says.
    """
    config = config.model_copy(update={"corpus": config.corpus.model_copy(update={"start": ""})})
    found = bases.run(config)
    first = found[config.bases.versions[0].id]
    ids = list(config.tasks.ids)
    runs = {task_id: corpus.plan_run(config, task_id, [first], config.corpus.seeds[0]) for task_id in _both(ids)}
    entries = corpus.train_runs(config, list(runs.values()), found)
    last = {task_id: entry.digests[-1] for task_id, entry in zip(runs, entries, strict=True)}
    arms = {
        task_id: {
            "trained": last[task_id], "majority": Unadapted.MAJORITY, "base": Unadapted.BASE,
            "wrong_task": last[_other(config, task_id)], "shuffled": last[f"shuffled/{task_id}"],
        }
        for task_id in ids
    }  # fmt: skip
    limit = config.evaluation.max_validation
    wanted = [
        Cell(
            base=first.id,
            dtype=config.bases.dtype,
            task=task_id,
            digests=tuple(sorted(arms[task_id].values())),
            split="validation",
            limit=limit,
        )
        for task_id in ids
    ]
    scored = cells.score_all(config, wanted, found)
    table = pd.DataFrame([_screened(config, task_id, scored[first.id, task_id], arms[task_id]) for task_id in ids])
    Records(open_objects(config.store)).commit("screen", _screen_recipe(config), {"kept": _kept(table)})
    return _written(config, "screen", table)


def kept_tasks(config: Config) -> Config:
    """The configuration with the tasks that passed the screening; EvaluationError when there was none."""
    record = Records(open_objects(config.store)).get("screen", _screen_recipe(config))
    if record is None:
        raise EvaluationError("the tasks are not screened yet; run the stage 'screen' with the same configuration")
    return config.model_copy(update={"tasks": config.tasks.model_copy(update={"ids": tuple(record["kept"])})})


def _pipeline(stage: Callable[[Config], Any]) -> Callable[[Config], str]:
    def run(config: Config) -> str:
        result = stage(kept_tasks(config))
        return result if isinstance(result, str) else f"{stage.__module__.rpartition('.')[2]}: done"

    return run


def variant(config: Config, name: str) -> Config:
    """The configuration of a variant, with tables of its own; EvaluationError lists the variants there are."""
    variants = {"reference": (), **config.study.variants}
    if name not in variants:
        raise EvaluationError(f"unknown variant {name!r}; there are {', '.join(variants)}")
    found = enter_tasks(with_overrides(kept_tasks(config), (*config.study.common, *variants[name])))
    return found.model_copy(update={"name": f"{config.name}-{name}", "out": f"{config.out}/{name}"})


def ablations(config: Config) -> str:
    """Every variant's `generated` and `wrong_prompt` arms beside those of the reference, which has no overrides of its own.

    Scores go to ablations.parquet, answers to ablation_answers.parquet; variants of earlier calls stay in both.
    """
    out = Path(config.out)
    scores_file, answers_file = out / "ablations.parquet", out / study_report.ABLATION_ANSWERS
    names = config.study.only or ("reference", *config.study.variants)
    variants = {name: variant(config, name) for name in names}
    for chosen in variants.values():
        evaluate.check_evaluation(chosen)
    for name, chosen in variants.items():
        logger.info("variant %s", name)
        _put_variant(scores_file, name, evaluate.run(chosen))
        _put_variant(answers_file, name, read_frame(Path(chosen.out) / "answers.parquet"))
    return variant_table(read_frame(answers_file), config.evaluation.num_bootstrap)


def _put_variant(file: Path, name: str, table: pd.DataFrame) -> None:
    """Put a variant's table among those of the others, in place of what it had there."""
    parts = [table.assign(variant=name)]
    if file.is_file():
        known = read_frame(file)
        parts.insert(0, known[known["variant"] != name])
    pd.concat(parts, ignore_index=True).to_parquet(file)


def unseen(config: Config) -> str:
    """Score the tasks that no training saw; a table with intervals, and the same in unseen.md."""
    evaluate.run_unseen(config)
    out = Path(config.out) / "unseen"
    table = task_table(read_frame(out / "answers.parquet"), config.evaluation.num_bootstrap)
    (out / "unseen.md").write_text(table + "\n")
    return table


STAGES: dict[str, Callable[[Config], str]] = {
    "tasks": tasks,
    "bases": drift,
    "screen": screen,
    "corpus": _pipeline(corpus.run),
    "shards": _pipeline(shards.run),
    "train": _pipeline(train.run),
    "evaluate": _pipeline(evaluate.run),
    "confusion": _pipeline(evaluate.run_confusion),
    "unseen": _pipeline(unseen),
    "ablations": ablations,
    "report": _pipeline(study_report.run),
}


MAIN = ("bases", "screen", "corpus", "shards", "train", "evaluate", "confusion", "report")
"""The stages of the main table, in order."""


def _both(ids: list[str]) -> list[str]:
    return [*ids, *(f"shuffled/{task_id}" for task_id in ids)]


def _other(config: Config, task_id: str) -> str:
    """The next task of the same form: chosen labels or free text."""
    free = not task_of(config, task_id).labels
    same = [other for other in config.tasks.ids if (not task_of(config, other).labels) == free]
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


def _screen_recipe(config: Config) -> str:
    corpus_settings = config.corpus.model_dump(mode="json", exclude=corpus.WHICH_RUNS | {"start"})
    tasks = [task_of(config, task_id).fingerprint for task_id in config.tasks.ids]
    return fingerprint(
        "screen", 1, tasks, config.bases.versions[0], config.bases.dtype, config.lora, corpus_settings,
        config.corpus.seeds[0], config.seed, config.evaluation.max_validation, config.evaluation.num_bootstrap,
    )  # fmt: skip


def _written(config: Config, name: str, table: pd.DataFrame) -> str:
    table.to_parquet(Path(config.out) / f"{name}.parquet")
    return table.to_string(index=False, float_format=lambda value: f"{value:.3f}")
