"""Which version comes from which, the newest one the generator may see, and which adapters it learns from."""

from pathlib import Path

import pytest
import torch
from factory_fixtures import base_of, layout_of, random_artifact, random_factors

from oral_ray.adapters.artifact import AdapterArtifact, build_artifact
from oral_ray.adapters.layout import AdapterLayout
from oral_ray.bases.catalog import BaseRecord
from oral_ray.bases.spec import build_spec
from oral_ray.config import Config, LoraSettings, build_config
from oral_ray.errors import ConfigError
from oral_ray.objects import FileObjects
from oral_ray.pipeline.corpus import (
    CorpusEntry,
    CorpusRun,
    alike,
    check_start,
    lineages,
    newest_seen,
    plan_learned,
    plan_run,
    plan_targets,
    seen_ids,
    train_run,
)
from oral_ray.pipeline.run import Run, begin_run, open_run
from oral_ray.pipeline.shards import plan_rows
from oral_ray.store.adapters import AdapterStore
from oral_ray.store.records import Records


def version(name: str, parent: str = "", seen: bool = True, kind: str = "pretrain") -> dict:
    origin = {"kind": kind, "parent": parent} if parent else {"kind": "landed"}
    return {"id": name, "seen": seen, "origin": origin | ({"corpus": "news"} if parent and kind == "pretrain" else {})}


def config(*versions: dict) -> Config:
    return build_config({"bases": {"versions": list(versions)}})


def two_lines() -> Config:
    return config(
        version("t0"), version("n1", "t0"), version("n2", "n1"), version("n3", "n2", seen=False),
        version("c1", "t0"), version("c2", "c1"), version("c3", "c2", seen=False), version("c4", "c3", seen=False),
    )  # fmt: skip


def lineages_of(settings: Config) -> list[list[int]]:
    return lineages(settings, seen_ids(settings))


def test_two_lineages_meet_in_their_first_version():
    assert lineages_of(two_lines()) == [[0, 1, 2], [0, 3, 4]]  # of t0, n1, n2, c1, c2


@pytest.mark.parametrize(
    ("base", "newest"),
    [("t0", "t0"), ("n1", "n1"), ("n2", "n2"), ("n3", "n2"), ("c3", "c2"), ("c4", "c2"), ("landed", "c2")],
)
def test_the_newest_seen_version_is_of_the_same_lineage(base: str, newest: str):
    assert newest_seen(two_lines(), base) == newest


@pytest.mark.parametrize(
    ("unseen", "found", "known"),
    [
        ("kind/bird", "kind/bird", "shuffled/kind/bird"),
        ("kind/*", "kind/bird", "shuffled/kind/bird"),
        ("not-kind/bird", "not-kind/bird", "shuffled/kind/bird"),
        ("few-shot/not-kind/*", "few-shot/not-kind/bird", "shuffled/kind/bird"),
        ("wordnet/matter", "wordnet/matter", "wordnet/matter"),
        ("instructed/wordnet/matter", "instructed/wordnet/matter", "wordnet/matter"),
    ],
)
def test_a_task_whose_examples_the_corpus_holds_is_not_unseen(unseen: str, found: str, known: str):
    tasks = {"ids": ["wordnet/matter", "shuffled/kind/bird"], "unseen": ["kind/tree", unseen]}
    with pytest.raises(ConfigError, match=f"'{found}' has the examples of '{known}' in tasks.ids"):
        begin_run(build_config({"tasks": tasks}))
    begin_run(build_config({"tasks": tasks | {"unseen": ["kind/tree", "instructed/wordnet/mind"]}}))


def test_versions_of_unknown_descent_follow_each_other():
    landed = config(version("a"), version("b"), version("c"), version("d", seen=False))
    assert lineages_of(landed) == [[0, 1, 2]]
    assert newest_seen(landed, "d") == "c"


def test_children_of_an_unseen_version_are_lineages_of_their_own():
    assert lineages_of(config(version("t0", seen=False), version("a", "t0"), version("b", "t0"))) == [[0], [1]]


def record(base_id: str, hidden_size: int = 16) -> BaseRecord:
    geometry = {
        "model_type": "bert", "hidden_size": hidden_size, "num_hidden_layers": 1, "intermediate_size": 32,
        "num_attention_heads": 2, "vocab_size": 100,
    }  # fmt: skip
    return BaseRecord(id=base_id, uri="u", spec=build_spec(geometry, {}, "x"), fingerprint=f"of-{base_id}")


def settings_of(records: dict[str, BaseRecord], **corpus: object) -> Config:
    return build_config(
        {
            "bases": {"versions": [version(base_id) for base_id in records]},
            "tasks": {"ids": ["wordnet/matter", "wordnet/mind"]},
            "corpus": corpus,
        }
    )


def run_of(records: dict[str, BaseRecord], settings: Config | None = None, **corpus: object) -> Run:
    return open_run(settings or settings_of(records, **corpus)).with_bases(records)


def targets(kind: str, **records: BaseRecord) -> list[tuple[str, tuple[str, ...]]]:
    return [(run.task, run.bases) for run in plan_targets(run_of(records, targets=kind))]


def test_the_generator_learns_one_adapter_a_version_or_one_for_all_versions():
    records = {"a": record("a"), "b": record("b")}
    assert targets("single", **records) == [
        ("wordnet/matter", ("a",)), ("wordnet/matter", ("b",)), ("wordnet/mind", ("a",)), ("wordnet/mind", ("b",)),
    ]  # fmt: skip
    assert targets("joint", **records) == [("wordnet/matter", ("a", "b")), ("wordnet/mind", ("a", "b"))]


@pytest.mark.parametrize("kind", ["single", "joint"])
def test_a_generator_may_learn_from_a_part_of_the_seeds_and_the_next_one_from_others(kind: str):
    records = {"a": record("a"), "b": record("b")}
    settings = settings_of(records, targets=kind, seeds=[3, 5, 8], seeds_per_generator=2)
    per_seed = {run.seed: seed for seed in (3, 5, 8) for run in plan_targets(run_of(records, seeds=[seed]))}

    def learned(generator: int) -> set[int]:
        training = settings.training.model_copy(update={"seed": generator})
        runs = plan_learned(run_of(records, settings.model_copy(update={"training": training})))
        assert {run.recipe for run in runs} <= {run.recipe for run in plan_targets(run_of(records, settings))}
        return {per_seed[run.seed] for run in runs}

    assert [learned(generator) for generator in range(4)] == [{3, 5}, {5, 8}, {8, 3}, {3, 5}]
    everything = run_of(records, targets=kind, seeds=[3, 5, 8])
    assert plan_learned(everything) == plan_targets(everything)


def test_versions_of_different_architectures_have_joint_adapters_of_their_own():
    found = targets("joint", a=record("a"), b=record("b", hidden_size=32), c=record("c"))
    assert {bases for _, bases in found} == {("a", "c"), ("b",)}


def test_one_generator_learns_several_kinds_of_adapters():
    records = {"a": record("a"), "b": record("b", hidden_size=32)}
    kinds = [{"r": 2}, {"r": 4, "target_modules": ["q", "k"]}]
    for kind in ("single", "joint"):
        runs = plan_targets(run_of(records, targets=kind, kinds=kinds))
        assert {(run.lora.r, run.lora.target_modules, run.bases) for run in runs} == {
            (r, names, (base,)) for r, names in ((2, ("q", "v")), (4, ("q", "k"))) for base in "ab"
        }
        assert len({run.recipe for run in runs}) == len(runs) == 8


def test_the_kind_that_is_scored_does_not_change_a_corpus_of_named_kinds():
    records = {"a": record("a")}
    settings = settings_of(records, kinds=[{"r": 2}, {"r": 8}])
    other = settings.model_copy(update={"lora": LoraSettings(r=8)})
    assert plan_targets(run_of(records, settings)) == plan_targets(run_of(records, other))


def test_versions_of_another_architecture_are_not_alike():
    records = {"a": record("a"), "b": record("b", hidden_size=32), "c": record("c")}
    settings = settings_of(records)
    assert [alike(run_of(records, settings), base_id) for base_id in "abc"] == [["a", "c"], ["b"], ["a", "c"]]
    assert lineages(settings, ["a", "c"]) == [[0], [1]]  # b stands between them


def test_what_the_generator_learns_names_no_training_run_anew():
    records = {"a": record("a")}
    recipes = {
        plan_run(open_run(build_config({"corpus": corpus})), "wordnet/mind", [records["a"]], 0).recipe
        for corpus in ({}, {"targets": "joint"}, {"kinds": [{"r": 4}]})
    }
    assert len(recipes) == 1


def test_an_adapter_for_all_versions_is_a_row_of_each_of_them():
    layout = AdapterLayout.of(record("a").spec, LoraSettings(), 16)
    run = CorpusRun(task="wordnet/mind", bases=("a", "b"), lora=LoraSettings(), seed=1, recipe="r")
    rows = plan_rows([CorpusEntry(run=run, digests=("x", "y", "z"))], [layout], last_checkpoints=2)
    assert sorted((row["base"], row["digest"], row["step"]) for row in rows) == [
        ("a", "y", 1), ("a", "z", 2), ("b", "y", 1), ("b", "z", 2),
    ]  # fmt: skip


def starting(objects: FileObjects, start: str, **sections: dict) -> Config:
    corpus = {"steps": 1, "keep_last": 1, "learning_rate": 1e-30, "start": start}
    tree = {"store": {"uri": str(objects.root)}, "corpus": corpus, "lora": {"r": 4}}
    return build_config({name: tree.get(name, {}) | sections.get(name, {}) for name in tree | sections})


def test_runs_start_from_the_adapter_of_the_configuration_and_one_that_does_not_fit_is_named(
    objects: FileObjects, tiny_bert: Path
):
    record, store = base_of(tiny_bert).record, AdapterStore(objects)

    def trained(start: str, **sections: dict) -> AdapterArtifact:
        settings = starting(objects, start, **sections)
        planned = plan_run(open_run(settings), "wordnet/matter", [record], 0)
        return store.get(train_run(settings, planned, [record])["digests"][-1])

    start, other = (store.put(random_artifact(layout_of(tiny_bert, r))) for r in (4, 2))
    fresh, begun = trained(""), trained(start)
    assert begun.provenance.recipe != fresh.provenance.recipe
    assert (Records(objects).get("corpus", begun.provenance.recipe) or {})["start"] == start
    wanted = store.get(start).tensors
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in begun.tensors.items())
    with pytest.raises(ConfigError, match=rf"'corpus.start': adapter {other[:12]} .*r=4"):
        trained(other)
    with pytest.raises(ConfigError, match=r"'corpus.start': no adapter '000.*jobs/multitask.py makes one"):
        trained("0" * 64)
    with pytest.raises(ConfigError, match=rf"'corpus.start': adapter {start[:12]} has lora_alpha=8 and would be 64"):
        trained(start, lora={"lora_alpha": 64})


def test_a_start_is_refused_before_any_run_where_it_cannot_fit_or_saw_an_unseen_task(
    objects: FileObjects, tiny_bert: Path
):
    found = {"t0": base_of(tiny_bert).record.model_copy(update={"id": "t0"})}
    layout, store = layout_of(tiny_bert, 4), AdapterStore(objects)
    made = random_artifact(layout).provenance.model_copy(update={"task": "", "recipe": "ab"})
    start = store.put(build_artifact(random_factors(layout, 0), layout, made))
    Records(objects).commit("static", "ab", {"run": {"tasks": ["wordnet/mind"], "further": ["instructed/kind/bird"]}})

    def checked(digest: str, unseen: tuple[str, ...] = (), **sections: dict) -> None:
        tasks = {"ids": ["wordnet/matter"], "unseen": list(unseen)}
        settings = starting(objects, digest, bases={"versions": [version("t0")]}, tasks=tasks, **sections)
        check_start(open_run(settings).with_bases(found))

    checked("")
    checked(start, ("kind/tree",))
    with pytest.raises(ConfigError, match=r"was trained on 'instructed/kind/bird', .* 'not-kind/bird' in tasks.unseen"):
        checked(start, ("kind/tree", "not-kind/bird"))
    with pytest.raises(ConfigError, match=r"was trained on 'wordnet/mind'"):
        checked(start, ("wordnet/mind",))
    alone = store.put(build_artifact(random_factors(layout, 1), layout, made.model_copy(update={"task": "kind/tree"})))
    with pytest.raises(ConfigError, match=r"was trained on 'instructed/kind/bird'"):
        checked(alone, ("kind/bird",))
    other = made.model_copy(update={"task": "kind/tree", "recipe": "cd"})
    with pytest.raises(ConfigError, match=r"was trained on 'kind/tree'"):
        checked(store.put(build_artifact(random_factors(layout, 2), layout, other)), ("kind/tree",))
    with pytest.raises(ConfigError, match=r"'corpus.start' is one adapter, and the corpus has 2 kinds"):
        checked(start, corpus={"kinds": [{"r": 2}, {"r": 4}], "start": start})
    with pytest.raises(ConfigError, match=r"'corpus.start': no adapter"):
        checked("0" * 64)
