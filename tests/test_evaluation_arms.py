"""Arms: what a static control gets, what is refined from what, and that a choice reads validation examples only."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from factory_fixtures import base_of, layout_of, random_artifact
from test_pipeline_corpus import two_lines

from oral_ray.config import Config
from oral_ray.errors import EvaluationError
from oral_ray.evaluation import cells, evaluate
from oral_ray.evaluation.arms.best import scaled
from oral_ray.evaluation.arms.joint_virtual import joint_virtual_run
from oral_ray.evaluation.arms.multitask import multitask_run
from oral_ray.evaluation.arms.registry import arm_of
from oral_ray.evaluation.context import Digests, EvaluationContext
from oral_ray.evaluation.make import check_bases, make_arms
from oral_ray.modalities import ACCURACY
from oral_ray.objects import FileObjects
from oral_ray.pipeline import material, static, train
from oral_ray.pipeline.run import open_run
from oral_ray.pipeline.work import look_up
from oral_ray.store.adapters import AdapterStore
from oral_ray.store.records import Records


def config(objects: FileObjects, **evaluation: Any) -> Config:
    tree = two_lines().model_dump(mode="json")
    tree["store"]["uri"] = str(objects.root)
    tree["tasks"] = {"ids": ["wordnet/matter", "wordnet/mind"], "further": ["kind/*"], "unseen": ["kind/bird"]}
    tree["training"]["functional"] = {"steps": 40, "tasks_per_step": 3, "further_frac": 0.25}
    tree["lora"] = {"r": 4, "lora_alpha": 8, "target_modules": ["q", "v"]}
    tree["evaluation"] |= evaluation
    return Config.model_validate(tree)


def context(settings: Config, records: dict[str, Any], made: Digests) -> EvaluationContext:
    """Of one task on one version, with adapters that are there."""
    manifest: Any = None
    run, arms = open_run(settings).with_bases(records), settings.evaluation.arms
    return EvaluationContext(run, arms, ("wordnet/mind",), ("t3",), manifest, {}, made)


def test_static_controls_get_the_task_gradients_of_the_functional_phase(objects: FileObjects):
    found = config(objects)
    of_one = joint_virtual_run(found, "wordnet/mind", ["t0", "n1"], "d" * 64, seed=1)
    assert (of_one.steps, of_one.tasks, of_one.start) == (45, ("wordnet/mind",), "d" * 64)  # 40 x 3 x 0.75 / 2
    assert of_one.bases == ("t0", "n1")
    alone = found.model_copy(update={"tasks": found.tasks.model_copy(update={"further": ()})})
    assert joint_virtual_run(alone, "wordnet/mind", ["t0"], "", seed=1).steps == 60
    of_all = multitask_run(found, ["t0"], material.auxiliary_tasks(open_run(found)), True, seed=0)
    assert of_all.steps == 120 and of_all.start == "" and len(of_all.auxiliary) == 159
    stored = of_all.model_dump(mode="json")
    assert stored["further"] == list(of_all.auxiliary) and "auxiliary" not in stored, "records keep their spelling"
    assert static.StaticRun.model_validate(stored) == of_all
    assert all(task_id.startswith("instructed/") for task_id in (*of_all.tasks, *of_all.auxiliary))


def test_static_controls_get_the_task_gradients_that_are_set_without_a_functional_phase(objects: FileObjects):
    tree = config(objects, task_gradients=200).model_dump(mode="json")
    for steps in (40, 0):
        tree["training"]["functional"]["steps"] = steps
        found = Config.model_validate(tree)
        assert joint_virtual_run(found, "wordnet/mind", ["t0"], "", seed=0).steps == 75  # 200 x 0.75 / 2
        assert multitask_run(found, ["t0"], (), False, seed=0).steps == 200


def test_an_unseen_task_and_its_opposite_are_in_no_training(objects: FileObjects):
    further = material.auxiliary_tasks(open_run(config(objects)))
    assert len(further) == 159 and "kind/bird" not in further and "kind/tree" in further
    tree = config(objects).model_dump(mode="json")
    tree["tasks"] |= {"further": ["kind/*", "not-kind/*", "wordnet/mind"], "unseen": ["not-kind/bird"]}
    further = material.auxiliary_tasks(open_run(Config.model_validate(tree)))
    assert len(further) == 318 and not {"kind/bird", "not-kind/bird", "wordnet/mind"} & {*further}
    tree["tasks"] |= {"further": ["instructed/kind/*", "kind/bird"], "unseen": ["instructed/not-kind/bird"]}
    further = material.auxiliary_tasks(open_run(Config.model_validate(tree)))
    assert len(further) == 159 and "instructed/kind/tree" in further
    assert not {"kind/bird", "instructed/kind/bird"} & {*further}


def test_no_functional_phase_no_static_control_on_virtual_versions(objects: FileObjects):
    tree = config(objects).model_dump(mode="json")
    tree["training"]["functional"]["steps"] = 0
    with pytest.raises(EvaluationError, match=r"set evaluation\.task_gradients or training\.functional\.steps"):
        joint_virtual_run(Config.model_validate(tree), "wordnet/mind", ["t0"], "", seed=0)


def test_a_static_adapter_that_is_not_there_any_more_is_not_done(objects: FileObjects, tiny_bert: Path):
    digest = AdapterStore(objects).put(random_artifact(layout_of(tiny_bert)))
    for recipe, named in (("ab", digest), ("cd", "0" * 64)):
        Records(objects).commit("static", recipe, {"run": {}, "digest": named})
    run = open_run(config(objects))
    found = look_up(run, "static", ["ab", "cd", "ef"], static._adapters_of, run.adapters.has)
    assert {recipe: record["digest"] for recipe, record in found.items()} == {"ab": digest}


def test_other_further_tasks_make_another_generator_and_none_leave_it_alone(objects: FileObjects):
    tree = config(objects).model_dump(mode="json")

    def recipe(further: list[str], unseen: list[str]) -> str:
        tree["tasks"] |= {"further": further, "unseen": unseen}
        return train.recipe_of(open_run(Config.model_validate(tree)), "shards")

    assert len({recipe([], []), recipe(["kind/bird"], []), recipe(["kind/tree"], [])}) == 3
    assert recipe(["kind/tree", "kind/bird"], ["kind/bird"]) == recipe(["kind/tree"], [])


@pytest.fixture
def chosen_from(objects: FileObjects, tiny_bert, monkeypatch: pytest.MonkeyPatch):
    """Score cells by a table instead of a model; returns the arms `best_*` and the cells that were asked.

    The adapters of seeds 0 and 1 are `generated`, that of seed 2 is reused.
    """

    def run(
        right: dict[tuple[int, float], int],
    ) -> tuple[dict[str, str], dict[tuple[int, float], str], list[cells.Cell]]:
        layout, base = layout_of(tiny_bert), base_of(tiny_bert)
        named = ["generated", "best_generated", "reuse_new", "best_reuse_new"]
        found = config(objects, arms=named, strengths=[1.0, 0.5], num_choice=7)
        lora = found.lora.model_copy(update=layout.lora.model_dump())
        found = found.model_copy(update={"lora": lora})
        store = AdapterStore(objects)
        given = {seed: store.put(random_artifact(layout, seed=seed)) for seed in (0, 1, 2)}
        made = {
            (seed, strength): scaled(open_run(found), digest, layout, strength)
            for seed, digest in given.items()
            for strength in (1.0, 0.5)
        }
        asked: list[cells.Cell] = []

        def score_all(run, wanted):
            asked.extend(wanted)
            table = {(2, 1.0): 0, (2, 0.5): 7} | right
            scores = {made[key]: 1.0 * (np.arange(7) < num) for key, num in table.items()}
            return {(cell.base, cell.task): cells.CellValues(ACCURACY, scores) for cell in wanted}

        monkeypatch.setattr(cells, "score_all", score_all)
        of: dict[int, Any] = {0: "generated", 1: "generated", 2: "reuse_new"}
        digests: Digests = {("t3", "wordnet/mind", of[seed], seed): digest for seed, digest in given.items()}
        bases: Any = {"t3": SimpleNamespace(spec=base.record.spec)}
        made_of = make_arms(context(found, bases, digests))
        best = {arm: digest for (_, _, arm, _), digest in made_of.items() if arm_of(arm).needs}
        return best, made, asked

    return run


@pytest.mark.parametrize(
    ("right", "wanted"),
    [
        ({(0, 1.0): 3, (0, 0.5): 5, (1, 1.0): 4, (1, 0.5): 2}, (0, 0.5)),
        ({(0, 1.0): 3, (0, 0.5): 5, (1, 1.0): 6, (1, 0.5): 2}, (1, 1.0)),
        ({(0, 1.0): 5, (0, 0.5): 5, (1, 1.0): 5, (1, 0.5): 5}, (0, 1.0)),
    ],
)
def test_the_best_of_an_arm_is_chosen_on_a_few_validation_examples(chosen_from, right, wanted):
    best, made, asked = chosen_from(right)
    assert best == {"best_generated": made[wanted], "best_reuse_new": made[2, 0.5]}
    assert [(cell.split, cell.limit, set(cell.digests)) for cell in asked] == [("validation", 7, set(made.values()))]


def test_strength_scales_the_change_of_the_weights(objects: FileObjects, tiny_bert):
    layout, store, run = layout_of(tiny_bert), AdapterStore(objects), open_run(config(objects))
    digest = store.put(random_artifact(layout, seed=3))
    assert scaled(run, digest, layout, 1.0) == digest
    before, after = (store.get(d).factors(layout) for d in (digest, scaled(run, digest, layout, 0.5)))
    for name, (a, b) in before.items():
        assert ((b @ a) * 0.5 - after[name][1] @ after[name][0]).abs().max() < 1e-6


def test_a_scaled_adapter_says_its_strength(objects: FileObjects, tiny_bert):
    layout, store, run = layout_of(tiny_bert), AdapterStore(objects), open_run(config(objects))
    digest = store.put(random_artifact(layout, seed=3))
    half = scaled(run, digest, layout, 0.5)
    assert store.get(half).provenance == store.get(digest).provenance.model_copy(update={"scale": 0.5})
    assert store.get(scaled(run, half, layout, 0.5)).provenance.scale == 0.25


def test_refinement_starts_from_the_arm_it_is_named_after(objects: FileObjects, monkeypatch: pytest.MonkeyPatch):
    plans: list[static.StaticRun] = []

    def train_all(run, planned):
        plans.extend(planned)
        return [f"refined-{i}" for i in range(len(planned))]

    monkeypatch.setattr(static, "train_all", train_all)
    found = config(objects, arms=["generated", "refined_scratch", "refined_generated"], refine_steps=3)
    digests: Digests = {("t3", "wordnet/mind", "generated", 1000): "g" * 64}
    made = make_arms(context(found, {}, digests))
    assert {(run.arm, run.bases, run.start, run.steps) for run in plans} == {
        ("refined_scratch", ("t3",), "", 3), ("refined_generated", ("t3",), "g" * 64, 3),
    }  # fmt: skip
    assert ("t3", "wordnet/mind", "refined_generated", 1000) in made
    with pytest.raises(EvaluationError, match="'refined_generated' is made from 'generated'; add it"):
        make_arms(context(config(objects, arms=["refined_generated"]), {}, {}))


def test_an_arm_that_is_needed_and_not_asked_for_is_made_and_not_scored(
    objects: FileObjects, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(static, "train_all", lambda run, planned: [f"from {work.start}" for work in planned])
    found = config(objects, arms=["joint_virtual"])
    records: dict[str, Any] = dict.fromkeys(("t0", "n1", "n2", "c1", "c2", "t3"), of_one_architecture())
    made = make_arms(context(found, records, {("t3", "wordnet/mind", "joint", 0): "j"}))
    assert made == {("t3", "wordnet/mind", "joint_virtual", 0): "from j"}


def of_one_architecture() -> Any:
    return SimpleNamespace(spec=SimpleNamespace(digest="one"))


def test_an_arm_without_an_adapter_reads_the_instruction_in_the_text():
    assert arm_of("prompted").reads("kind/bird") == "instructed/kind/bird"
    assert arm_of("few_shot").reads("kind/bird") == "few-shot/kind/bird"
    assert arm_of("generated").reads("kind/bird") == "kind/bird"


@pytest.mark.parametrize("arm", ["trained", "generated", "refined_scratch", "reuse_new", "joint"])
def test_an_adapter_of_another_base_version_is_caught_where_it_must_be_of_this_one(
    objects: FileObjects, tiny_bert, arm
):
    store, layout = AdapterStore(objects), layout_of(tiny_bert)
    digest = store.put(random_artifact(layout, seed=0))
    of_this: Any = SimpleNamespace(fingerprint=store.get(digest).provenance.base_fingerprint)
    other: Any = SimpleNamespace(fingerprint="other")
    digests: Digests = {("t3", "wordnet/mind", arm, 0): digest}
    run = open_run(config(objects))
    check_bases(digests, run.with_bases({"t3": of_this}))
    if not arm_of(arm).for_its_base:
        check_bases(digests, run.with_bases({"t3": other}))
        return
    with pytest.raises(EvaluationError, match=rf"the {arm} adapter {digest[:12]} of wordnet/mind was made for"):
        check_bases(digests, run.with_bases({"t3": other}))


def test_versions_of_arms_on_have_arms_of_their_own_and_the_others_have_all(objects: FileObjects):
    found = config(objects, arms=["base", "generated", "trained"], bases=["n3", "c4", "c3"], arms_on={"c4": ["base"]})
    assert evaluate._parts(found) == [(("base", "generated", "trained"), ["n3", "c3"]), (("base",), ["c4"])]


def test_arms_of_a_version_that_is_not_configured_are_an_error(objects: FileObjects):
    with pytest.raises(EvaluationError, match=r"evaluation\.arms_on names \['n9'\], configured are t0, "):
        evaluate.chosen_bases(config(objects, arms_on={"n9": ["base"]}))


def planned(objects: FileObjects, arm: str, **evaluation: Any) -> dict[tuple[str, str, int], Any]:
    """What an arm plans for two tasks on the unseen version n3, with two generators."""
    found = config(objects, **evaluation)
    records: dict[str, Any] = {
        version.id: SimpleNamespace(id=version.id, fingerprint=version.id, spec=SimpleNamespace(digest="one"))
        for version in found.bases.versions
    }
    manifest: Any = SimpleNamespace(fingerprint="shards")
    generators = {0: "first", 2: "second"}
    run = open_run(found).with_bases(records)
    return arm_of(arm).plan(EvaluationContext(run, (arm,), found.tasks.ids, ("n3",), manifest, generators))


@pytest.mark.parametrize(
    ("arm", "versions"),
    [
        ("trained", ["n3"]), ("trained_long", ["n3"] * 5), ("reuse_old", ["t0"]), ("reuse_new", ["n2"]),
        ("joint", ["t0", "n1", "n2", "c1", "c2"]),
    ],
)  # fmt: skip
def test_an_arm_of_the_corpus_is_trained_on_its_versions(objects: FileObjects, arm: str, versions: list[str]):
    plan = planned(objects, arm)
    assert list(plan) == [("n3", "wordnet/matter", 0), ("n3", "wordnet/mind", 0)]
    assert [(run.task, list(run.bases)) for run in plan.values()] == [
        ("wordnet/matter", versions), ("wordnet/mind", versions),
    ]  # fmt: skip


def test_every_sample_of_every_generator_has_a_number_of_its_own_in_the_tables(objects: FileObjects):
    plan = planned(objects, "generated", seeds=[0, 7])
    of_task = {number: request for (_, task, number), request in plan.items() if task == "wordnet/mind"}
    assert {number: (request.recipe, request.seed) for number, request in of_task.items()} == {
        0: ("first", 0), 7: ("first", 7), 2000: ("second", 0), 2007: ("second", 7),
    }  # fmt: skip
    assert list(planned(objects, "regression")) == [("n3", "wordnet/matter", 0), ("n3", "wordnet/mind", 0)]


def test_a_generated_arm_differs_in_its_prompt(objects: FileObjects):
    matter, mind = (open_run(config(objects)).task(task_id) for task_id in ("wordnet/matter", "wordnet/mind"))
    wanted = {
        "generated": [matter.prompt, mind.prompt], "wrong_prompt": [mind.prompt, matter.prompt],
        "held_out": [matter.held_out_prompts[0], mind.held_out_prompts[0]],
    }  # fmt: skip
    for arm, prompts in wanted.items():
        requests = [request for (_, _, number), request in planned(objects, arm).items() if number == 0]
        assert [(request.arm, request.prompt) for request in requests] == [(arm, prompt) for prompt in prompts]
