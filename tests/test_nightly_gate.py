"""The gate on the small store: the best candidate on validation data is published, and no test data is read."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from nightly_fixtures import copied, items_of, published, tiny_config

from oral_ray.adapters.artifact import read_folder
from oral_ray.config import Config
from oral_ray.errors import ArtifactError
from oral_ray.evaluation import cells
from oral_ray.evaluation.arms import refined as refined_arms
from oral_ray.modalities import ACCURACY, Metric
from oral_ray.nightly import gate, regenerate
from oral_ray.nightly.gate import Candidate, Item, Outcome
from oral_ray.objects import FileObjects
from oral_ray.pipeline.run import Run, open_run
from oral_ray.store.adapters import AdapterStore
from oral_ray.store.fsck import find_faults
from oral_ray.tasks import Task

TASK = "wordnet/matter"


@pytest.fixture
def due(whole_path: tuple[Path, Path, str], tiny_bert: Path, tmp_path: Path) -> Iterator[tuple[Path, Config, Item]]:
    """A store with nothing released, a configuration that publishes only what beats the base, and an item."""
    store = copied(whole_path[0], tmp_path / "store")
    config = tiny_config(store, tiny_bert, "regenerate.min_gain_over_base=0.0")
    recipe = regenerate.dry_run(open_run(config)).generator
    item = items_of(config, recipe)[0]
    yield store, config, item
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch):
    """Plants how many of 20 validation examples each candidate answers rightly."""

    def planted(**hits: float) -> None:
        def score(run: Run, item: Item, candidates: Sequence[Candidate]) -> tuple[Metric, dict[str, float]]:
            names = ("base", *(candidate.name for candidate in candidates))
            return ACCURACY, {name: hits[name.replace("-", "_")] / 20 for name in names}

        monkeypatch.setattr(gate, "_score", score)

    return planted


def test_a_planted_bad_generated_adapter_is_not_published_but_reuse_is(due, plant):
    store, config, item = due
    plant(base=5, generated=4, reuse_new=12, reuse_old=11)
    outcome, adapter = gate.regenerate_item(config, item)
    assert adapter is not None
    provenance = AdapterStore(FileObjects(store)).get(adapter.digest).provenance
    source = item.reuse["reuse_new"]
    assert (adapter.arm, provenance.source or adapter.digest) == ("reuse_new", source)
    assert published(store) == {f"{item.base.id}/{adapter.adapter_id}"}
    assert outcome.scores == {"base": 0.25, "generated": 0.2, "reuse_new": 0.6, "reuse_old": 0.55}


@pytest.mark.parametrize("hits", [5, 4, 0])
def test_where_everything_is_planted_bad_nothing_is_published_and_the_reason_names_all(due, plant, hits: int):
    store, config, item = due
    plant(base=5, generated=hits, reuse_new=hits, reuse_old=hits)
    outcome, adapter = gate.regenerate_item(config, item)
    assert adapter is None
    assert not (store / "published").exists()
    assert outcome.decision.reason.startswith("no candidate beats base by more than 0.0: generated ")
    assert all(name in outcome.decision.reason for name in ("generated", "reuse_new", "reuse_old", "base"))


def test_the_best_of_several_samples_is_published_under_its_own_name(due, plant):
    _, config, item = due
    config = config.model_copy(update={"regenerate": config.regenerate.model_copy(update={"num_candidates": 3})})
    plant(base=5, generated=6, generated_1=9, generated_2=8, reuse_new=7, reuse_old=7)
    outcome, adapter = gate.regenerate_item(config, item)
    assert adapter is not None and adapter.arm == "generated-1"
    assert set(outcome.scores) == {"base", "generated", "generated-1", "generated-2", "reuse_new", "reuse_old"}


def test_the_best_candidate_is_refined_on_the_very_base_and_published_only_when_it_is_better(
    due, plant, monkeypatch: pytest.MonkeyPatch
):
    store, config, item = due
    started, real = [], refined_arms.refined_run

    def refined(config: Config, arm: str, base: str, task: str, start: str, seed: int):
        started.append(start)
        return real(config, arm, base, task, start, seed)

    monkeypatch.setattr(refined_arms, "refined_run", refined)
    settings = {"candidates": ("generated", "reuse_new", "reuse_old", "refined"), "refine_steps": 2}
    config = config.model_copy(update={"regenerate": config.regenerate.model_copy(update=settings)})
    plant(base=5, generated=6, reuse_new=12, reuse_old=7, refined=12)
    assert gate._decide(open_run(config), item).decision.arm == "reuse_new", "the earlier one in a tie"
    assert started == [item.reuse["reuse_new"]]
    for path in (store / "records/gate").iterdir():
        path.unlink()
    plant(base=5, generated=6, reuse_new=12, reuse_old=7, refined=13)
    _, adapter = gate.regenerate_item(config, item)
    assert adapter is not None and adapter.arm == "refined"
    assert adapter.digest not in (*item.reuse.values(), "")


def test_the_first_decision_counts(due, plant):
    _, config, item = due
    plant(base=5, generated=8, reuse_new=7, reuse_old=7)
    _, first = gate.regenerate_item(config, item)
    plant(base=5, generated=7, reuse_new=8, reuse_old=7)
    assert gate.regenerate_item(config, item)[1] == first
    assert isinstance(gate.decided(open_run(config), item), Outcome)
    assert gate._decide(open_run(config), item).decision.arm == "generated", (
        "a run at the same time that was slower takes it over"
    )


def test_what_was_decided_is_not_worked_out_again(due, plant, monkeypatch: pytest.MonkeyPatch):
    _, config, item = due
    plant(base=5, generated=8, reuse_new=7, reuse_old=7)
    first = gate.regenerate_item(config, item)
    monkeypatch.setattr(gate, "_decide", None)
    assert gate.regenerate_item(config, item) == first


def test_a_decision_is_of_this_very_version_task_generator_and_candidates(due, plant):
    _, config, item = due
    plant(base=5, generated=8, reuse_new=7, reuse_old=7)
    gate._decide(open_run(config), item)
    assert gate.decided(open_run(config), item) is not None
    other = {
        "base": item.base.model_copy(update={"fingerprint": "another"}), "task_fingerprint": "another",
        "recipe": "another", "reuse": {"reuse_new": item.reuse["reuse_new"]},
    }  # fmt: skip
    for name, value in other.items():
        assert gate.decided(open_run(config), item.model_copy(update={name: value})) is None, name
    for settings in ({"num_candidates": 2}, {"min_gain_over_base": 0.1}, {"candidates": ("generated",)}):
        changed = config.model_copy(update={"regenerate": config.regenerate.model_copy(update=settings)})
        assert gate.decided(open_run(changed), item) is None, settings


def test_a_decision_without_a_refused_candidate_is_taken_again_when_the_candidate_is_mended(
    due, plant, monkeypatch: pytest.MonkeyPatch
):
    _, config, item = due
    plant(base=5, generated=9, reuse_new=7, reuse_old=6)
    real = cells.generate_here

    def broken(*args):
        raise ArtifactError("not finite")

    monkeypatch.setattr(cells, "generate_here", broken)
    outcome = gate._decide(open_run(config), item)
    assert (outcome.decision.arm, outcome.refused) == ("reuse_new", {"generated": "not finite"})
    monkeypatch.setattr(cells, "generate_here", real)
    assert gate.decided(open_run(config), item) is None
    assert gate.regenerate_item(config, item)[0].decision.arm == "generated"


def test_no_test_data_is_read(due, monkeypatch: pytest.MonkeyPatch):
    _, config, item = due
    real, asked = Task.examples, []

    def examples(self: Task, split):
        asked.append(split)
        if split == "test":
            raise AssertionError("the gate reads test data")
        return real(self, split)

    monkeypatch.setattr(Task, "examples", examples)
    loaded = Run.task

    class Sealed(Task):
        def __getattribute__(self, name: str):
            if name == "test":
                raise AssertionError("the gate reads test data")
            return super().__getattribute__(name)

    def sealed(run: Run, task_id: str) -> Task:
        return Sealed.model_construct(**{name: getattr(loaded(run, task_id), name) for name in Task.model_fields})

    monkeypatch.setattr(Run, "task", sealed)
    monkeypatch.setattr(Task, "fingerprint", "of the sealed task")
    outcome = gate._decide(open_run(config), item)
    assert set(outcome.scores) == {"base", "generated", "reuse_new", "reuse_old"}
    assert set(asked) == {"validation"}


@pytest.mark.parametrize("served_name", ["", "chat", "/models/any/where"])
@pytest.mark.parametrize("arm", ["generated", "joint", "reuse_new", "reuse_old"])
def test_whatever_wins_names_the_base_that_it_is_released_for_as_it_is_served(due, plant, arm: str, served_name: str):
    store, config, item = due
    regenerate_ = config.regenerate.model_copy(
        update={"served_names": {item.base.id: served_name} if served_name else {}}
    )
    config = config.model_copy(update={"regenerate": regenerate_})
    adapters = AdapterStore(FileObjects(store))
    if arm == "joint":
        item = item.model_copy(update={"reuse": {**item.reuse, "joint": item.reuse["reuse_old"]}})
    plant(**{"base": 5, "generated": 6, "joint": 6, "reuse_new": 6, "reuse_old": 6, arm: 12})
    outcome, adapter = gate.regenerate_item(config, item)
    assert adapter is not None and adapter.arm == arm
    wanted = served_name or item.base.id
    folder = store / "published" / item.base.id / adapter.adapter_id
    published_ = read_folder(folder)
    assert published_.digest == adapter.digest == adapters.get(adapter.digest).digest
    assert published_.config["base_model_name_or_path"] == wanted
    said = published_.provenance
    assert (said.base, said.base_fingerprint, said.served_name) == (item.base.id, item.base.fingerprint, served_name)
    made = adapters.get(outcome.digest)
    assert all(torch.equal(published_.tensors[name], made.tensors[name]) for name in made.tensors)
    if said.source:
        assert (said.source, said.source_base) == (outcome.digest, made.provenance.base)
    else:
        assert adapter.digest == outcome.digest, "nothing changes where it was made for this base"
    card = (folder / "README.md").read_text()
    assert wanted in card.splitlines()[2] and f"- task: {TASK}\n- released as: {arm}\n" in card
    assert list(find_faults(FileObjects(store))) == []


@pytest.mark.parametrize("damage", ["delete", "damage"])
def test_a_generated_candidate_that_is_lost_is_generated_again(due, plant, damage: str):
    store, config, item = due
    plant(base=5, generated=9, reuse_new=7, reuse_old=7)
    first, adapter = gate.regenerate_item(config, item)
    assert adapter is not None
    spoil(store / "adapters" / first.digest, damage)
    assert gate.regenerate_item(config, item) == (first, adapter)
    assert AdapterStore(FileObjects(store)).is_whole(first.digest)
    spoil(store / "adapters" / first.digest, damage)
    assert gate._decide(open_run(config), item) == first, "and so it is before the decision"


def test_a_reuse_candidate_that_is_damaged_is_refused_and_blocks_no_other(due, plant):
    store, config, item = due
    plant(base=5, generated=7, reuse_new=9, reuse_old=6)
    first, _ = gate.regenerate_item(config, item)
    assert first.decision.arm == "reuse_new"
    spoil(store / "adapters" / first.digest, "damage")
    if item.reuse["reuse_new"] == item.reuse["reuse_old"]:
        item = item.model_copy(update={"reuse": {"reuse_new": first.digest}})
        gate.regenerate_item(config, item)
    outcome, adapter = gate.regenerate_item(config, item)
    assert adapter is not None and outcome.decision.arm == "generated"
    assert "it was changed or damaged; delete that folder" in outcome.refused["reuse_new"]


def test_a_candidate_whose_score_is_no_number_is_refused_by_name_and_blocks_no_other(due, plant):
    _, config, item = due
    plant(base=5, generated=float("nan"), reuse_new=7, reuse_old=6)
    outcome, adapter = gate.regenerate_item(config, item)
    assert adapter is not None and adapter.arm == "reuse_new"
    assert outcome.refused == {"generated": "its accuracy on the validation examples is no number"}
    assert outcome.scores == {"base": 0.25, "reuse_new": 0.35, "reuse_old": 0.3}


def test_an_arm_is_no_part_of_a_name(due, plant, monkeypatch: pytest.MonkeyPatch):
    """A candidate keeps its place among the arms whatever its name is."""
    _, config, item = due
    real = gate._candidates

    def renamed(config: Config, item: Item) -> tuple[list[Candidate], dict[str, str]]:
        found, refused = real(config, item)
        return [candidate._replace(name=f"reuse_old-{i}") for i, candidate in enumerate(reversed(found))], refused

    monkeypatch.setattr(gate, "_candidates", renamed)
    plant(base=5, reuse_old_0=8, reuse_old_1=8, reuse_old_2=8)
    assert gate._decide(open_run(config), item).decision.arm == "reuse_old-2", (
        "the sample of `generated`, which comes first"
    )


def test_a_deleted_adapter_of_the_corpus_is_trained_again(due):
    store, config, item = due
    [folder, *_] = [store / "adapters" / digest for digest in item.reuse.values()]
    weights = (folder / "adapter_model.safetensors").read_bytes()
    spoil(folder, "delete")
    assert any("records/corpus/" in fault and folder.name in fault for fault in find_faults(FileObjects(store)))
    items_of(config, item.recipe)
    assert (folder / "adapter_model.safetensors").read_bytes() == weights
    assert list(find_faults(FileObjects(store))) == []


def test_an_adapter_that_another_use_made_first_says_how_it_was_made_and_is_released_for_its_task(due, plant):
    store, config, item = due
    [request] = gate._requests(open_run(config), item)
    wrong = request.model_copy(update={"arm": "wrong_prompt", "task": "wordnet/mind"})
    [first] = cells.generate_here(open_run(config), [wrong], item.base)
    folder = store / "adapters" / first
    spoil(folder, "delete")  # whoever was first in the small store
    cells.generate_here(open_run(config), [wrong], item.base)
    said = (folder / "provenance.json").read_bytes()
    plant(base=5, generated=9, reuse_new=7, reuse_old=7)
    outcome, adapter = gate.regenerate_item(config, item)
    assert adapter is not None and outcome.digest == first
    assert (adapter.task, adapter.arm) == (TASK, "generated")
    assert (folder / "provenance.json").read_bytes() == said
    provenance = AdapterStore(FileObjects(store)).get(first).provenance
    assert (provenance.origin, provenance.task, provenance.prompt) == ("generated", "", request.prompt)
    spoil(folder, "delete")
    cells.generate_here(open_run(config), [request], item.base)
    assert (folder / "provenance.json").read_bytes() == said, "whoever is first writes the same"
    assert f"- task: {TASK}\n" in (store / "published" / item.base.id / adapter.adapter_id / "README.md").read_text()


def spoil(folder: Path, how: str) -> None:
    """Delete an adapter, or change a byte of its weights."""
    for path in list(folder.iterdir()):
        data = bytearray(path.read_bytes())
        path.unlink()  # files of the store may be linked to those of another one
        if how == "damage":
            data[-10] ^= path.name.endswith(".safetensors")
            path.write_bytes(data)
