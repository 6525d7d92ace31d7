"""Publishing: one adapter a task, and two runs that decide the same make one release."""

from pathlib import Path

from factory_fixtures import base_of, layout_of, random_artifact

from oral_ray.config import Config
from oral_ray.objects import FileObjects
from oral_ray.release import GateDecision
from oral_ray.stages.regenerate import Outcome, _publish
from oral_ray.store.adapters import AdapterStore
from oral_ray.store.releases import ReleaseStore


def outcome(task: str, digest: str, score: float = 0.5) -> Outcome:
    decision = GateDecision(arm="generated", reason="")
    return Outcome(base="v1", task=task, decision=decision, scores={"generated": score}, digest=digest)


def test_a_second_run_that_decided_the_same_adds_nothing(tiny_bert: Path, objects: FileObjects):
    digests = [AdapterStore(objects).put(random_artifact(layout_of(tiny_bert), seed=seed)) for seed in range(3)]
    found = {"v1": base_of(tiny_bert).record.model_copy(update={"id": "v1"})}
    outcomes = [outcome("a", digests[0]), outcome("b", digests[1])]
    for _ in range(2):  # the second one has decided before it could see the release of the first
        _publish(Config(), objects, "g1", found, outcomes)
    releases = ReleaseStore(objects)
    assert releases.sequence("v1") == [1]
    assert [adapter.task for adapter in releases.get("v1", 1).adapters] == ["a", "b"]
    _publish(Config(), objects, "g1", found, [outcome("b", digests[2], 0.6), outcome("c", digests[2])])
    latest = releases.latest("v1")
    assert latest is not None
    assert {adapter.task: adapter.digest for adapter in latest.adapters} == {
        "a": digests[0], "b": digests[2], "c": digests[2],
    }  # fmt: skip


def test_another_generator_starts_a_release_of_its_own(tiny_bert: Path, objects: FileObjects):
    digest = AdapterStore(objects).put(random_artifact(layout_of(tiny_bert)))
    found = {"v1": base_of(tiny_bert).record.model_copy(update={"id": "v1"})}
    _publish(Config(), objects, "g1", found, [outcome("a", digest)])
    _publish(Config(), objects, "g2", found, [outcome("b", digest)])
    latest = ReleaseStore(objects).latest("v1")
    assert latest is not None and [adapter.task for adapter in latest.adapters] == ["b"]
