"""The nightly job on the small store, in this process: idempotent, one bad item stops no other, races lose nothing."""

import dataclasses
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from nightly_fixtures import copied, items_of, key_pair, land, published, tiny_config

from oral_ray.bases.catalog import discover
from oral_ray.config import Config, SigningConfig, StoreConfig
from oral_ray.errors import ArtifactError, ConfigError, StoreError
from oral_ray.nightly import gate, regenerate
from oral_ray.nightly.gate import Outcome
from oral_ray.nightly.plan import GateDecision, PlanItem
from oral_ray.nightly.summary import (
    FailedItem,
    RegenerationSummary,
    once_a_base,
    summary_html,
    summary_text,
    tables,
    write_summary,
)  # fmt: skip
from oral_ray.objects import FileObjects, open_objects
from oral_ray.pipeline.run import Run, open_run
from oral_ray.store.adapters import AdapterStore
from oral_ray.store.fsck import find_faults
from oral_ray.store.generators import Lineage, generator_lineage
from oral_ray.store.heads import latest_of
from oral_ray.store.releases import Release, ReleasedAdapter, ReleaseStore
from oral_ray.store.shards import read_manifest
from oral_ray.store.signing import signer_name

TASKS = ["wordnet/matter", "wordnet/mind"]


@pytest.fixture
def nightly(whole_path: tuple[Path, Path, str], tiny_bert: Path, tmp_path: Path) -> Iterator[tuple[Path, Config]]:
    """A store in which `v9` has landed and nothing is released, and the configuration of the job."""
    store = copied(whole_path[0], tmp_path / "store")
    land(store, "v9")
    yield store, tiny_config(store, tiny_bert, 'regenerate.bases=["tiny-t2", "v9"]')
    torch.use_deterministic_algorithms(False)


def state(store: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}


def test_a_landed_version_gets_an_adapter_a_task_and_a_second_run_does_nothing(nightly: tuple[Path, Config]):
    store, config = nightly
    looked = regenerate.dry_run(open_run(config))
    assert [(item.base, item.action) for item in looked.plan] == [("tiny-t2", "generate")] * 2 + [
        ("v9", "generate")
    ] * 2
    assert published(store) == set()
    summary = regenerate.run_night(open_run(config))
    assert summary.failed == ()
    assert [(row["base"], row["task"]) for row in summary.published] == [
        (base, task) for base in ("tiny-t2", "v9") for task in TASKS
    ]
    assert published(store) == {f"{row['base']}/{row['adapter_id']}" for row in summary.published}
    assert len(list((store / "runs").iterdir())) == 1
    before = state(store)
    again = regenerate.run_night(open_run(config))
    assert {item.reason for item in again.plan} == {"already released"}
    assert again.published == summary.published
    assert state(store) == before


def test_a_release_says_what_went_into_it(nightly: tuple[Path, Config], monkeypatch: pytest.MonkeyPatch):
    store, config = nightly
    monkeypatch.setattr("oral_ray.nightly.gate.code_version", lambda: "1.2.3+commit")
    recipe = regenerate.run_night(open_run(config)).generator
    objects = FileObjects(store)
    release = ReleaseStore(objects).latest("v9", "tiny")
    assert release is not None and (release.generator, release.name) == (recipe, config.name)
    lineage = generator_lineage(objects, recipe)
    assert (release.generator_digest, release.corpus) == (lineage.digest, lineage.corpus)
    assert len(release.generator_digest) == 64
    assert read_manifest(objects, release.corpus) is not None, "the corpus is named by its shards"
    [record] = [record for record in discover(objects, "bases", 0.0)[0] if record.id == "v9"]
    assert release.base_fingerprint == record.fingerprint
    for adapter in release.adapters:
        provenance = AdapterStore(objects).get(adapter.digest).provenance
        assert (adapter.seed, adapter.code_version, adapter.signer) == (provenance.seed, "1.2.3+commit", "")
        assert {"base", adapter.arm} <= adapter.scores.keys()


def test_a_pattern_that_no_landed_base_matches_is_named(nightly: tuple[Path, Config]):
    _, config = nightly
    recipe = regenerate.run_night(open_run(config)).generator
    patterns = config.regenerate.model_copy(update={"bases": ("v*", "v9-typo*")})
    settings = config.model_copy(update={"regenerate": patterns})
    assert [item.id for item in regenerate.survey(open_run(settings), recipe).skipped] == ["v9-typo*"]
    assert (
        regenerate.survey(open_run(settings), recipe, only=["v9"]).skipped == []
    )  # an event names the bases it is about


def test_two_configurations_over_one_store_do_not_undo_each_other(nightly: tuple[Path, Config]):
    store, config = nightly
    regenerate.run_night(open_run(config))
    other = config.model_copy(update={"name": "other"})
    assert {item.action for item in regenerate.run_night(open_run(other)).plan} == {"generate"}
    before = state(store)
    for settings in (config, other):
        assert {item.reason for item in regenerate.run_night(open_run(settings)).plan} == {"already released"}
    assert state(store) == before
    releases = ReleaseStore(FileObjects(store))
    assert {name: releases.sequence("v9", name) for name in releases.names("v9")} == {"other": [1], "tiny": [1]}


def test_a_base_that_is_served_under_another_name_is_released_again_under_it(nightly: tuple[Path, Config]):
    store, config = nightly
    regenerate.run_night(open_run(config))
    names = config.regenerate.model_copy(update={"served_names": {"v9": "chat", "v-typo": "x"}})
    summary = regenerate.run_night(open_run(config.model_copy(update={"regenerate": names})))
    assert {item.base for item in summary.plan if item.action == "generate"} == {"v9"}
    assert [(item.id, item.reason) for item in summary.skipped_bases] == [
        ("v-typo", "nothing under bases/ has such a name; see regenerate.served_names")
    ]
    releases = ReleaseStore(FileObjects(store))
    assert releases.sequence("v9", "tiny") == [1, 2]
    latest = releases.latest("v9", "tiny")
    assert latest is not None and latest.served_name == "chat" and len(latest.adapters) == 2
    for released in latest.adapters:
        assert (
            json.loads((store / released.uri / "adapter_config.json").read_text())["base_model_name_or_path"] == "chat"
        )
    assert list(find_faults(FileObjects(store))) == []


@pytest.mark.parametrize("lost", ["runs/", "releases"])
def test_the_summary_of_a_run_outlives_a_store_that_fails_at_its_end(
    nightly: tuple[Path, Config], monkeypatch: pytest.MonkeyPatch, lost: str
):
    _, config = nightly
    real_put, real_latest, asked = FileObjects.put, regenerate.latest_of, []

    def put(self: FileObjects, key: str, data: bytes) -> None:
        if key.startswith(lost):
            raise StoreError("403 ExpiredToken")
        real_put(self, key, data)

    def latest(objects: FileObjects, name: str):
        asked.append(name)
        if lost == "releases" and len(asked) > 1:
            raise StoreError("403 ExpiredToken")
        return real_latest(objects, name)

    monkeypatch.setattr(FileObjects, "put", put)
    monkeypatch.setattr(regenerate, "latest_of", latest)
    summary = regenerate.run_night(open_run(config))
    said = {
        "runs/": "this summary is not kept in the store: 403 ExpiredToken",
        "releases": "what is released cannot be read (403 ExpiredToken); see oral-ray list",
    }
    assert summary.failed == (FailedItem(base="*", task="*", reason=said[lost]),)
    assert len(summary.outcomes) == 4
    assert len(summary.published) == (4 if lost == "runs/" else 0)


def test_what_another_code_decides_again_changes_no_release(
    nightly: tuple[Path, Config], monkeypatch: pytest.MonkeyPatch
):
    store, config = nightly
    regenerate.run_night(open_run(config))
    before = ReleaseStore(FileObjects(store)).latest("v9", "tiny")
    monkeypatch.setattr("oral_ray.nightly.gate.code_version", lambda: "another")
    found = regenerate.survey(open_run(config), before.generator)  # type: ignore[union-attr]
    again = [gate.regenerate_item(config, item)[1] for item in due(config, found, before.generator)]  # type: ignore[union-attr]
    lineage = generator_lineage(FileObjects(store), before.generator)  # type: ignore[union-attr]
    regenerate._release(open_run(config), lineage, found.bases["v9"], [a for a in again if a])
    assert ReleaseStore(FileObjects(store)).sequence("v9", "tiny") == [1]


def due(config: Config, found: regenerate.Survey, recipe: str) -> list[gate.Item]:
    """The items of v9 as if nothing were released."""
    plan = [item.model_copy(update={"action": "generate"}) for item in found.plan if item.base == "v9"]
    return items_of(config, recipe, dataclasses.replace(found, plan=plan))


def test_the_adapters_that_the_generator_learnt_compete_with_it(nightly: tuple[Path, Config]):
    store, config = nightly
    found = regenerate.survey(open_run(config), regenerate.run_night(open_run(config)).generator)
    joint = config.model_copy(update={"corpus": config.corpus.model_copy(update={"targets": "joint"})})
    origins = {
        settings.corpus.targets: {
            name: AdapterStore(FileObjects(store)).get(digest).provenance.origin
            for item in due(settings, found, "recipe")
            for name, digest in item.reuse.items()
        }
        for settings in (config, joint)
    }
    reused = {"reuse_new": "trained", "reuse_old": "trained"}
    assert origins == {"single": reused, "joint": {"joint": "joint", **reused}}


def test_with_keys_what_is_published_is_signed_and_nothing_else_is_released(
    nightly: tuple[Path, Config], tmp_path: Path
):
    store, config = nightly
    private, public = key_pair(tmp_path, "ours")
    _, other = key_pair(tmp_path, "other")

    def keyed(key: Path) -> Config:
        signing = SigningConfig(private_key=private, public_key=key)
        return config.model_copy(update={"store": config.store.model_copy(update={"signing": signing})})

    failed = regenerate.run_night(open_run(keyed(other))).failed
    assert len(failed) == 4
    assert all("model.sig is no signature of these files by" in item.reason for item in failed)
    assert not (store / "releases").exists()
    summary = regenerate.run_night(open_run(keyed(public)))
    assert summary.failed == ()
    release = ReleaseStore(FileObjects(store)).latest("v9", "tiny")
    assert release is not None and {adapter.signer for adapter in release.adapters} == {signer_name(public)}
    assert list(find_faults(FileObjects(store), public_key=public)) == []


def test_a_checkpoint_uploaded_again_under_the_same_path_is_a_new_version(nightly: tuple[Path, Config]):
    store, config = nightly
    regenerate.run_night(open_run(config))
    (store / "bases/v9/model.safetensors").unlink()
    (store / "bases/v9").rename(store / "old")
    land(store, "v9", noise=2e-3)
    summary = regenerate.run_night(open_run(config))
    assert {item.base for item in summary.plan if item.action == "generate"} == {"v9"}
    releases = ReleaseStore(FileObjects(store))
    assert releases.sequence("v9", "tiny") == [1, 2]
    assert releases.get("v9", "tiny", 1).base_fingerprint != releases.get("v9", "tiny", 2).base_fingerprint


def test_an_item_that_fails_is_named_and_the_others_are_released_and_the_next_run_adds_it(
    nightly: tuple[Path, Config], monkeypatch: pytest.MonkeyPatch
):
    store, config = nightly
    real, tried = regenerate.regenerate_item, []

    def broken(config: Config, item):
        tried.append(item.task)
        if (item.base.id, item.task) == ("v9", "wordnet/mind"):
            raise StoreError("the store is tired")
        return real(config, item)

    monkeypatch.setattr(regenerate, "regenerate_item", broken)
    summary = regenerate.run_night(open_run(config))
    assert summary.failed == (FailedItem(base="v9", task="wordnet/mind", reason="the store is tired"),)
    assert len(tried) == 4 + config.regenerate.retries, "a store that fails is asked again"
    assert [(row["base"], row["task"]) for row in summary.published] == [
        ("tiny-t2", TASKS[0]), ("tiny-t2", TASKS[1]), ("v9", TASKS[0]),
    ]  # fmt: skip
    monkeypatch.undo()
    assert len(regenerate.run_night(open_run(config)).published) == 4
    latest = ReleaseStore(FileObjects(store)).latest("v9", "tiny")
    assert latest is not None and [adapter.task for adapter in latest.adapters] == TASKS


@pytest.mark.parametrize("error", [KeyError("encoder.layer.9"), MemoryError("no room"), RuntimeError("a\nb")])
def test_whatever_one_item_raises_is_said_of_it_by_name_and_the_others_are_released(
    nightly: tuple[Path, Config], monkeypatch: pytest.MonkeyPatch, error: Exception
):
    _, config = nightly
    real = regenerate.regenerate_item

    def broken(config: Config, item):
        if (item.base.id, item.task) == ("v9", "wordnet/mind"):
            raise error
        return real(config, item)

    monkeypatch.setattr(regenerate, "regenerate_item", broken)
    [failed] = regenerate.run_night(open_run(config)).failed
    assert (failed.base, failed.task) == ("v9", "wordnet/mind")
    assert failed.reason.startswith(f"{type(error).__name__}: ") and "please report it" in failed.reason
    assert "\n" not in failed.reason
    assert {head.number for head in latest_of(open_objects(config.store), config.name).values()} == {1}


def test_a_base_whose_release_fails_is_named_and_the_others_are_released(
    nightly: tuple[Path, Config], monkeypatch: pytest.MonkeyPatch
):
    _, config = nightly
    real = regenerate._release

    def broken(run: Run, lineage, base, adapters):
        if base.id == "tiny-t2":
            raise RuntimeError("odd")
        real(run, lineage, base, adapters)

    monkeypatch.setattr(regenerate, "_release", broken)
    summary = regenerate.run_night(open_run(config))
    assert [(item.base, item.task) for item in summary.failed] == [("tiny-t2", "*")]
    assert {row["base"] for row in summary.published} == {"v9"}
    assert "4 published, 0 with nothing better than the base, 1 failed" in summary.headline


def test_a_decision_that_cannot_be_read_fails_its_item_and_no_other(
    nightly: tuple[Path, Config], monkeypatch: pytest.MonkeyPatch
):
    _, config = nightly
    real = gate.decided

    def broken(run: Run, item):
        if (item.base.id, item.task) == ("v9", "wordnet/mind"):
            raise StoreError("record is damaged")
        return real(run, item)

    monkeypatch.setattr(gate, "decided", broken)
    monkeypatch.setattr(regenerate, "decided", broken)
    summary = regenerate.run_night(open_run(config))
    assert summary.failed == (FailedItem(base="v9", task="wordnet/mind", reason="record is damaged"),)
    assert len(summary.published) == 3


def test_a_base_on_which_everything_fails_for_one_reason_stands_there_once():
    def failed(base: str, task: str, reason: str) -> FailedItem:
        return FailedItem(base=base, task=task, reason=reason)

    items = [
        failed("a", "1", "x"),
        failed("a", "2", "x"),
        failed("b", "1", "x"),
        failed("b", "2", "y"),
        failed("c", "1", "x"),
    ]
    assert once_a_base(items, {"a": 2, "b": 2, "c": 1}) == [failed("a", "*", "x"), *items[2:]]
    plan = [PlanItem(base=base, task=task, action="generate", reason="") for base in "abc" for task in "12"]
    summary = RegenerationSummary(
        started="now", generator="g" * 32, plan=tuple(plan), failed=tuple(once_a_base(items, {"a": 2, "b": 2, "c": 1}))
    )
    assert ", 5 failed;" in summary.headline
    undone = next(rows for title, _, rows in tables(summary) if title == "to do")
    assert undone == [("c", "2", "")], "what failed is not to be done besides"


def test_where_nothing_beats_the_base_nothing_is_published_and_the_decision_is_kept(nightly: tuple[Path, Config]):
    store, config = nightly
    strict = config.model_copy(update={"regenerate": config.regenerate.model_copy(update={"min_gain_over_base": 1.0})})
    summary = regenerate.run_night(open_run(strict))
    assert published(store) == set()
    assert not (store / "releases").exists()
    text = summary_text(summary)
    assert text.count("no candidate beats base by more than 1.0") == 4
    before = state(store)
    assert regenerate.run_night(open_run(strict)).outcomes == summary.outcomes
    assert state(store) == before


def adapter(task: str, digest: str = "d" * 64) -> ReleasedAdapter:
    return ReleasedAdapter(task=task, arm="generated", adapter_id=task, digest=digest, uri="u", score=1.0, scores={})


def test_two_runs_at_once_make_one_release_where_they_agree_and_lose_nothing_where_they_do_not(objects: FileObjects):
    base = Release(base="v1", base_fingerprint="f", generator="g", name="run", served_name="v1", adapters=())
    record, run = _Record(), open_run(Config(store=StoreConfig(uri=str(objects.root))))
    start = threading.Barrier(6)

    def publish(tasks: list[str]) -> None:
        start.wait()
        regenerate._release(run, Lineage("g"), record, [adapter(task) for task in tasks])  # type: ignore[arg-type]

    wanted = [["a", "b"], ["a", "b"], ["b"], ["c"], ["a", "c"], ["d"]]
    threads = [threading.Thread(target=publish, args=(tasks,)) for tasks in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    latest = ReleaseStore(objects).latest("v1", "run")
    assert latest == base.model_copy(update={"adapters": tuple(adapter(task) for task in "abcd")})
    number = ReleaseStore(objects).sequence("v1", "run")[-1]
    regenerate._release(run, Lineage("g"), record, [adapter("a", "e" * 64)])  # type: ignore[arg-type]
    assert ReleaseStore(objects).sequence("v1", "run")[-1] == number, "what is released for this version stays"
    regenerate._release(run, Lineage("g2"), record, [adapter("a")])  # type: ignore[arg-type]
    latest = ReleaseStore(objects).latest("v1", "run")
    assert latest is not None and [a.task for a in latest.adapters] == ["a"], "another generator starts anew"


class _Record:
    id, fingerprint = "v1", "f"


def test_the_latest_of_cost_one_listing_and_what_is_new(objects: FileObjects):
    releases = ReleaseStore(objects)
    for name in ("a", "b"):
        releases.append(Release(base=name, base_fingerprint="f", generator="g", name="r", adapters=()))
    first = latest_of(objects, "r")
    assert {base: head.number for base, head in first.items()} == {"a": 1, "b": 1}
    counted = _Counted(objects)
    assert latest_of(counted, "r") == first  # type: ignore[arg-type]
    assert counted.calls == ["get cache/heads.json", "list releases/"]
    releases.append(Release(base="b", base_fingerprint="f2", generator="g", name="r", adapters=()))
    counted = _Counted(objects)
    assert latest_of(counted, "r")["b"].number == 2  # type: ignore[arg-type]
    assert counted.calls == [
        "get cache/heads.json", "list releases/", "get releases/b/r/00000002.json", "put cache/heads.json",
    ]  # fmt: skip
    objects.put("releases/a/r/00000001.json", b"{")
    objects.put("cache/heads.json", b"{")
    assert list(latest_of(objects, "r")) == ["b"], "a damaged release stops no other base"


class _Counted:
    def __init__(self, objects: FileObjects) -> None:
        self._objects, self.calls, self.uri = objects, [], objects.uri

    def __getattr__(self, name: str):
        def call(key: str, *rest):
            self.calls.append(f"{name} {key}")
            return getattr(self._objects, name)(key, *rest)

        return call


def test_a_watch_runs_again_for_what_an_event_names_and_lists_everything_now_and_then(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    config = Config().model_copy(update={"store": Config().store.model_copy(update={"uri": f"file://{tmp_path}"})})
    regenerate_config = config.regenerate.model_copy(update={"poll_s": 0.2, "events": "https://queue"})
    config = config.model_copy(update={"regenerate": regenerate_config})
    runs, done = [], []

    class Queue:
        def __init__(self, url: str) -> None:
            assert url == "https://queue"

        def wait(self, seconds: float):
            return [regenerate_hint(f"file://{tmp_path}/bases/v3/config.json")] if len(runs) == 1 else []

        def done(self, hints) -> None:
            done.extend(hints)

    monkeypatch.setattr(regenerate, "EventQueue", Queue)
    monkeypatch.setattr(regenerate, "run_night", lambda run, only=None: runs.append(only))
    watching = regenerate.watch(config)
    for _ in range(3):
        next(watching)
    assert runs == [None, {"v3"}, None]
    assert len(done) == 1, "a hint is deleted after the run, not before"


def regenerate_hint(uri: str):
    from oral_ray.bases.events import Hint

    return Hint((uri,), "receipt")


def test_a_summary_says_everything_in_text_html_and_json(tmp_path: Path):
    outcome = Outcome(
        base="v1", task="t<1>", decision=GateDecision(arm=None, reason="no candidate"), scores={"base": 0.5},
        refused={"reuse_new": "it is damaged"}, digest="",
    )  # fmt: skip
    summary = RegenerationSummary(
        started="now", generator="g" * 32, outcomes=(outcome,), failed=(FailedItem(base="v2", task="t", reason="bad"),)
    )
    for part in ("v1", "no candidate", "it is damaged", "v2", "bad"):
        assert part in summary_text(summary)
        assert part in summary_html(summary)
    assert "t&lt;1&gt;" in summary_html(summary)
    for name in ("a.json", "a.html", "a.txt"):
        write_summary(summary, tmp_path / "deep" / name)
    assert RegenerationSummary.model_validate(json.loads((tmp_path / "deep/a.json").read_text())) == summary
    with pytest.raises(ConfigError, match=r"\.json, \.html, \.txt"):
        write_summary(summary, tmp_path / "a.pdf")


def test_a_generator_that_makes_broken_adapters_is_refused_and_reuse_is_published(
    nightly: tuple[Path, Config], monkeypatch: pytest.MonkeyPatch
):
    _, config = nightly

    def broken(*args):
        raise ArtifactError("the adapter holds values that are not finite")

    monkeypatch.setattr("oral_ray.evaluation.cells._generate", broken)
    summary = regenerate.run_night(open_run(config))
    assert {row["arm"] for row in summary.published} <= {"reuse_new", "reuse_old"}
    assert len(summary.published) == 4
    assert "the adapter holds values that are not finite" in summary_text(summary)
