"""The registry of arms: the order of tables, names that there are not, and that one file is enough to add an arm."""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
# (the stubs of pandas type every selection as a union that nothing can be done with)

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer
from nightly_fixtures import tiny_config

from oral_ray.config import Config
from oral_ray.errors import EvaluationError
from oral_ray.evaluation import arms, evaluate
from oral_ray.evaluation.arms.registry import all_arms, arm_names, arm_of, chosen_arms, reference_names
from oral_ray.evaluation.context import Sample
from oral_ray.evaluation.make import _waves
from oral_ray.evaluation.report.figures import plot_arms
from oral_ray.evaluation.report.tables import arm_table, arms_text
from oral_ray.pipeline.bases import resolve_bases
from oral_ray.pipeline.run import begin_run
from oral_ray.pipeline.walk import Trained
from oral_ray.study.evidence import headline, headline_text
from oral_ray.study.quickstart import run_quickstart
from oral_ray.study.stages import run_stage

HALVED = '''
"""A toy: the adapter of the newest seen version at half its strength."""

from oral_ray.adapters.layout import AdapterLayout
from oral_ray.evaluation.arms.best import scaled
from oral_ray.evaluation.arms.registry import Arm


def plan_halved(evaluation):
    config = evaluation.config
    plan = {}
    for (base_id, task_id, seed), digest in evaluation.made_by("reuse_new").items():
        layout = AdapterLayout.of(evaluation.run.bases[base_id].spec, config.lora, config.tokens.token_dim)
        plan[base_id, task_id, seed] = scaled(evaluation.run, digest, layout, 0.5)
    return plan


ARMS = (
    Arm(name="halved", description="Half of an adapter.", order=85, colour="#123456", plan=plan_halved,
        needs=("reuse_new",), against=("reuse_new",), is_reference=True),
)
'''


@pytest.fixture
def add_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """Put a file into the folder of arms, for this test."""
    monkeypatch.setattr(arms, "__path__", [*arms.__path__, str(tmp_path / "arms")])

    def add(name: str, text: str) -> None:
        (tmp_path / "arms").mkdir(exist_ok=True)
        (tmp_path / "arms" / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        all_arms.cache_clear()

    before = set(sys.modules)
    yield add
    for name in set(sys.modules) - before:
        if name.startswith(f"{arms.__name__}."):
            del sys.modules[name]
    all_arms.cache_clear()


def test_tables_have_the_arms_from_what_costs_nothing_to_what_may_choose():
    assert arm_names() == (
        "base", "prompted", "few_shot", "majority", "trained", "trained_long", "reuse_old", "reuse_new", "joint",
        "joint_virtual", "mean", "nearest", "multitask", "multitask_instructed", "regression", "generated", "held_out",
        "wrong_prompt", "refined_scratch", "refined_reuse_new", "refined_joint", "refined_generated", "best_trained",
        "best_reuse_new", "best_joint", "best_joint_virtual", "best_generated",
    )  # fmt: skip
    assert reference_names() == ["trained", "trained_long", "reuse_new", "joint"]
    assert {source for arm in all_arms() for source in (*arm.needs, *arm.against)} <= set(arm_names())


def test_what_is_made_for_one_base_how_tasks_are_read_and_whose_distance_is_measured():
    assert {arm.name for arm in all_arms() if arm.for_its_base} == {
        "trained", "trained_long", "generated", "held_out", "wrong_prompt", "refined_scratch", "refined_reuse_new",
        "refined_joint", "refined_generated",
    }  # fmt: skip
    assert {arm.name: arm.frame for arm in all_arms() if arm.frame} == {
        "prompted": "instructed/", "few_shot": "few-shot/", "multitask_instructed": "instructed/",
    }  # fmt: skip
    measured = [arm.name for arm in all_arms() if arm.measures_distance]
    assert measured == ["trained", "regression", "generated", "held_out"]
    assert [arm.name for arm in all_arms() if arm.against] == ["generated", "refined_generated", "best_generated"]


def test_every_arm_says_in_a_sentence_what_it_is():
    assert all(arm.description.endswith(".") and len(arm.description) < 120 for arm in all_arms())


def test_a_name_that_is_no_arm_is_refused_with_the_nearest_names():
    with pytest.raises(EvaluationError, match="no arm 'reuse_newest'; did you mean reuse_new"):
        chosen_arms(["base", "reuse_newest"])
    with pytest.raises(EvaluationError, match=r"no arm 'luck'; there are base, prompted, .*best_generated"):
        chosen_arms(["luck"])


@pytest.mark.parametrize(
    "override", ['evaluation.arms=["base", "luck"]', 'evaluation.arms_on.tiny-t1=["luck"]', 'evaluation.bases=["luck"]']
)
def test_an_evaluation_of_what_there_is_not_ends_before_anything_is_made(
    tmp_path: Path, tiny_bert: Path, override: str
):
    config = tiny_config(tmp_path / "store", tiny_bert, override)
    for begin in (run_quickstart, lambda config: run_stage(config, "all")):
        with pytest.raises(EvaluationError, match="luck"):
            begin(config)
    assert not (tmp_path / "store").exists()


def test_an_arm_is_made_after_those_that_it_is_made_from():
    waves = [[arm.name for arm in wave] for wave in _waves([arm_of("best_joint_virtual"), arm_of("base")], set())]
    assert waves == [["base", "joint"], ["joint_virtual"], ["best_joint_virtual"]]
    waves = [[arm.name for arm in wave] for wave in _waves([arm_of("best_joint_virtual")], {"joint_virtual", "joint"})]
    assert waves == [["best_joint_virtual"]]


@pytest.mark.parametrize("field", ["name", "order", "colour"])
def test_two_arms_with_one_name_place_or_colour_are_refused(add_arm, field: str):
    given = {"name": "halved", "order": 85, "colour": "#123456"} | {field: getattr(arm_of("joint"), field)}
    fields = ", ".join(f"{key}={value!r}" for key, value in given.items())
    add_arm("halved", HALVED.replace('name="halved"', fields).replace(', order=85, colour="#123456"', ""))
    with pytest.raises(EvaluationError, match=f"two arms have the {field} "):
        all_arms()


def test_the_numbers_of_samples_are_those_of_the_tables():
    assert [Sample(generator, seed, "").number for generator in (0, 2) for seed in (0, 3)] == [0, 3, 2000, 2003]


def test_one_file_adds_an_arm_to_making_scoring_tables_and_figures(add_arm, tmp_path: Path, tiny_bert: Path):
    add_arm("halved", HALVED)
    config = toy_config(tmp_path, tiny_bert)
    run = resolve_bases(begin_run(config))
    shards: Any = None  # no arm here needs a generator
    scores = evaluate.evaluate_unseen(Trained(run, {}, shards, ""), {})
    assert set(scores["arm"]) == {"base", "reuse_new", "halved"}
    store, halved = run.adapters, scores[scores["arm"] == "halved"]
    assert len(halved) == 4 and all(store.get(digest).provenance.scale == 0.5 for digest in halved["digest"])
    assert set(scores[scores["arm"] == "base"]["digest"]) == {""}
    table = arm_table(tmp_path / "out" / "unseen", 20)
    assert [line.split()[0] for line in arms_text(table).splitlines()] == ["arm", "base", "reuse_new", "halved"]
    assert table["vs_halved"].notna().sum() == 4  # two arms on two versions
    answers = pd.read_parquet(tmp_path / "out" / "unseen" / "answers.parquet")
    text = headline_text(headline(scores.assign(line="", t=0), answers, 20))
    assert "| halved minus ..., points |" in text
    axes = plt.figure().subplots()
    plot_arms(axes, table)
    bars = [drawn for drawn in axes.containers if isinstance(drawn, BarContainer)]
    colours = {drawn.get_label(): to_hex(drawn.patches[0].get_facecolor()) for drawn in bars}
    plt.close()
    assert colours["halved"] == "#123456" and colours["base"] == arm_of("base").colour


def toy_config(tmp_path: Path, tiny_bert: Path) -> Config:
    return tiny_config(
        tmp_path / "store", tiny_bert, f"out={tmp_path / 'out'}", 'evaluation.bases=["tiny-t1", "tiny-t2"]',
        'evaluation.arms=["base", "reuse_new", "halved"]', "corpus.steps=1", "corpus.keep_last=1",
    )  # fmt: skip
