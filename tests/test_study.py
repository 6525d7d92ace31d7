"""The study: descent of the versions, what the screening keeps and why, stages that need it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from factory_fixtures import base_of
from safetensors.torch import load_file, save_file
from test_evaluation_report import MEANS, write_tables
from test_pipeline_corpus import two_lines

from oral_ray.config import Config, StudyConfig, build_config
from oral_ray.errors import EvaluationError
from oral_ray.modalities import ACCURACY
from oral_ray.objects import FileObjects
from oral_ray.pipeline import corpus, train
from oral_ray.pipeline.run import Run, open_run
from oral_ray.store.bases import BaseStore
from oral_ray.study import page as study_report
from oral_ray.study import stages as study
from oral_ray.study.page import lineages_of
from oral_ray.study.stages import run_stage
from oral_ray.study.suite import Suite, kept_tasks, screen_recipe


def config(objects: FileObjects) -> Config:
    found = two_lines()
    tasks = found.tasks.model_copy(update={"ids": ("wordnet/matter", "wordnet/mind")})
    store = found.store.model_copy(update={"uri": str(objects.root)})
    return found.model_copy(update={"tasks": tasks, "store": store})


def test_a_version_is_of_the_corpus_it_was_pretrained_on():
    assert lineages_of(two_lines()) == {
        "t0": ("", 0), "n1": ("news", 1), "n2": ("news", 2), "n3": ("news", 3), "c1": ("news", 1), "c2": ("news", 2),
        "c3": ("news", 3), "c4": ("news", 4),
    }  # fmt: skip


def test_versions_of_two_architectures_drift_from_the_first_of_their_own(
    objects: FileObjects, tiny_bert: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, folder in (("bert-t0", tiny_bert), ("bert-t1", tiny_bert), ("llama-t0", tiny_llama)):
        shutil.copytree(folder, objects.root / "bases" / name)
    file = objects.root / "bases/bert-t1/model.safetensors"
    save_file({name: 1.5 * tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    found = {name: BaseStore(objects, "bases").record(name) for name in ("bert-t0", "bert-t1", "llama-t0")}
    monkeypatch.setattr("oral_ray.study.suite.resolve_bases", lambda run: run.with_bases(found))
    monkeypatch.setattr(Run, "on_cluster", lambda _, calls, **__: [function(*of) for function, of in calls])
    monkeypatch.setattr(study, "load_corpus", lambda name: [f"{name} of the day is long"] * 400)
    settings = config(objects).model_copy(update={"out": str(objects.root / "out")})
    Path(settings.out).mkdir()
    study.drift(Suite(open_run(settings)))
    table = pd.read_parquet(Path(settings.out) / "drift.parquet").set_index("base")
    assert list(table["weight_change"]) == pytest.approx([0.0, 0.5, 0.0])
    assert table.loc["llama-t0", "perplexity_news"] > 1.0
    assert table.loc[["bert-t0", "bert-t1"], "perplexity_news"].isna().all()  # an encoder predicts no text


def test_an_unknown_stage_lists_the_stages(objects: FileObjects):
    with pytest.raises(
        EvaluationError, match=r"unknown stage 'none'; there are tasks, bases, screen, .*report, and all"
    ):
        run_stage(config(objects), "none")
    assert list(objects.list()) == []


def test_the_screening_trains_from_fresh_adapters_and_is_found_by_a_run_that_starts_from_another(
    objects: FileObjects, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
):
    fresh = config(objects)
    started = fresh.model_copy(update={"corpus": fresh.corpus.model_copy(update={"start": "a" * 64})})
    records = {"t0": base_of(tiny_bert).record}
    monkeypatch.setattr("oral_ray.study.suite.resolve_bases", lambda run: run.with_bases(records))

    def trained(run: Run, *_: object) -> None:
        raise LookupError(run.config.corpus.start)

    monkeypatch.setattr(corpus, "train_runs", trained)
    with pytest.raises(LookupError, match=r"^$"):
        study.screen(Suite(open_run(started)))
    assert screen_recipe(open_run(started)) == screen_recipe(open_run(fresh))


def test_nothing_is_evaluated_before_the_screening(objects: FileObjects):
    with pytest.raises(EvaluationError, match="not screened yet; run the stage 'screen' with the same configuration"):
        kept_tasks(open_run(config(objects)))


@pytest.mark.parametrize(
    ("lead", "kept", "fails"),
    [
        ({}, True, ""),
        ({"majority": 60}, False, "majority"),
        ({"base": 58, "shuffled": 70}, False, "base, shuffled"),
        ({"wrong_task": 50}, True, ""),
    ],
)
def test_a_task_is_kept_when_its_adapter_beats_every_control_beyond_its_interval(
    objects: FileObjects, lead: dict[str, int], kept: bool, fails: str
):
    """100 examples, 60 right with the trained adapter; controls have 20 right but for those of the case."""

    def right(number: int) -> np.ndarray:
        return 1.0 * (np.arange(100) < number)

    lows = {
        control: study._lead(right(60), right(lead.get(control, 20)), ACCURACY, config(objects))
        for control in study.CONTROLS
    }
    assert (min(lows.values()) > 0) == kept
    assert study._failed(lows) == fails


def test_a_wrong_task_is_the_next_one_of_the_same_form():
    ids = ["wordnet/matter", "wordnet/mind", "wordnet/society"]
    settings = build_config({"tasks": {"ids": ids}})
    assert [study._other(open_run(settings), task_id) for task_id in ids] == [
        "wordnet/mind",
        "wordnet/society",
        "wordnet/matter",
    ]


def test_a_table_is_written_as_markdown():
    table = pd.DataFrame({"task": ["a"], "n": [3], "trained": [0.51234]})
    assert study_report._markdown_table(table) == "| task | n | trained |\n| --- | --- | --- |\n| a | 3 | 0.512 |"


def test_other_generators_of_one_corpus_have_other_recipes(objects: FileObjects):
    found = open_run(config(objects))
    recipes = {train.recipe_of(train.with_seed(found, seed), "shards") for seed in (0, 1, 2)}
    assert len(recipes) == 3 and train.recipe_of(found, "shards") in recipes


def test_a_variant_is_the_suite_with_its_overrides_and_its_own_tables(objects: FileObjects, monkeypatch):
    monkeypatch.setattr("oral_ray.study.suite.resolve_bases", lambda run: run)
    monkeypatch.setattr("oral_ray.study.suite.kept_tasks", lambda run: run.config)
    variants = StudyConfig(common=("training.steps=7",), variants={"random-text": ("condition.text=random",)})
    found = config(objects).model_copy(update={"study": variants, "out": "out/x"})
    suite = Suite(open_run(found))
    made = study.variant(suite, "random-text").config
    assert (made.training.steps, made.condition.text, made.out) == (7, "random", "out/x/random-text")
    reference = study.variant(suite, "reference").config
    assert (reference.training.steps, reference.condition.text) == (7, "prompt")
    assert made.bases == reference.bases == found.bases
    with pytest.raises(EvaluationError, match="unknown variant 'none'; there are reference, random-text"):
        study.variant(suite, "none")


def test_the_tables_of_a_variant_take_the_place_of_its_earlier_ones(tmp_path: Path):
    file = tmp_path / "ablations.parquet"
    for name, value in (("a", 1), ("b", 2), ("a", 3)):
        study._put_variant(file, name, pd.DataFrame({"value": [value]}))
    assert pd.read_parquet(file)[["variant", "value"]].to_numpy().tolist() == [["b", 2], ["a", 3]]


def test_a_report_has_scores_summary_page_and_a_figure_for_every_table_there_is(
    objects: FileObjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = write_tables(tmp_path, arms=("trained", "reuse_new", "generated"))
    pd.DataFrame(
        {
            "asked": ["a", "a", "b", "b"],
            "task": ["a", "b", "a", "b"],
            "metric": "accuracy",
            "value": [0.9, 0.3, 0.2, 0.8],
        }
    ).to_parquet(out / "confusion.parquet")
    for name in ("drift", "screen"):
        pd.DataFrame({"base": ["base-t0"], "value": [0.5]}).to_parquet(out / f"{name}.parquet")
    suite = config(objects).model_copy(update={"out": str(out), "name": "toy"})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    scores = pd.read_parquet(out / "scores.parquet")
    monkeypatch.setattr(study_report, "lineages_of", lambda config: {"base-t0": ("news", 0), "base-t3": ("news", 3)})
    page = study_report.write_page(open_run(suite), scores)
    folder = out / "page"
    drawn = {path.stem for path in folder.glob("*.png")}
    assert drawn == {"arms", "tasks", "distances", "curve", "confusion"}  # no ablations were run
    assert all(f"({name}.png)" in page for name in drawn) and page + "\n" == (folder / "README.md").read_text()
    assert {"line", "t", "variant"} <= set(pd.read_parquet(folder / "scores.parquet"))
    assert list(elsewhere.iterdir()) == [], "nothing is written where the shell stands"
    asked = suite.model_copy(update={"study": StudyConfig(page=str(tmp_path / "asked" / "toy"))})
    assert (
        study_report.write_page(open_run(asked), scores) + "\n"
        == (tmp_path / "asked" / "toy" / "README.md").read_text()
    )
    summary = json.loads((folder / "summary.json").read_text())
    assert [row["group"] for row in summary["headline"]] == ["news t=0", "news t=3 (unseen)", "all unseen"]
    assert summary["headline"][-1]["arms"]["generated"]["mean"] == pytest.approx(round(50 * MEANS["generated"]) / 50)
