"""gc deletes what nothing names and nothing else; fsck tells damage by name; aliases are only appended."""

import os
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oral_ray.adapters.artifact import AdapterArtifact
from oral_ray.cli import main
from oral_ray.errors import ReleaseError, StoreError
from oral_ray.objects import FileObjects
from oral_ray.store.adapters import AdapterStore
from oral_ray.store.fsck import find_faults
from oral_ray.store.garbage import collect, plan_collection
from oral_ray.store.records import Records
from oral_ray.store.releases import Release, ReleasedAdapter, ReleaseStore

MakeArtifact = Callable[..., AdapterArtifact]


def age(objects: FileObjects, part: str = "", seconds: float = 1e6) -> None:
    for path in objects.root.rglob("*"):
        if path.is_file() and part in str(path):
            stat = path.stat()
            os.utime(path, (stat.st_atime, stat.st_mtime - seconds))


def release(objects: FileObjects, base: str, *digests: str) -> int:
    store = AdapterStore(objects)
    adapters = tuple(
        ReleasedAdapter(
            task=f"t{i}", arm="generated", adapter_id=d[:12], digest=d, score=0.5, scores={},
            uri=store.publish(d, "published", base, d[:12]),
        )
        for i, d in enumerate(digests)
    )  # fmt: skip
    return ReleaseStore(objects).append(
        Release(base=base, base_fingerprint="f", generator="g", name="r", adapters=adapters)
    )


ROLES = ("orphan", "record", "released", "unmarked", "young orphan", "young view", "old view")


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(roles=st.lists(st.sampled_from(ROLES), min_size=1, max_size=7))
def test_gc_deletes_exactly_what_is_old_and_named_by_nothing(
    roles: list[str], make_artifact: MakeArtifact, tmp_path_factory: pytest.TempPathFactory
):
    objects = FileObjects(tmp_path_factory.mktemp("store"))
    store, kept, gone = AdapterStore(objects), set(), set()
    for number, role in enumerate(roles):
        digest = store.put(make_artifact(seed=number))
        (gone if role in ("orphan", "unmarked") else kept).add(f"adapters/{digest}/adapter_model.safetensors")
        if role == "record":
            Records(objects).commit("corpus", str(number), {"deep": [{"digests": [digest]}]})
        elif role == "released":
            release(objects, f"b{number}", digest)
            kept.add(f"published/b{number}/{digest[:12]}/adapter_config.json")
        elif role == "unmarked":
            objects.delete(f"adapters/{digest}/adapter_config.json")
        elif "view" in role:
            Records(objects).commit("gate", str(number), {"digest": digest})
            store.publish(digest, "published", "b", digest[:12])
            (gone if role == "old view" else kept).add(f"published/b/{digest[:12]}/adapter_config.json")
    age(objects)
    for number, role in enumerate(roles):
        if role.startswith("young"):
            digest = make_artifact(seed=number).digest
            age(objects, digest if role == "young orphan" else digest[:12], -1e6)
    collect(objects, plan_collection(objects, grace_s=3600))
    left = {info.key for info in objects.list()}
    assert kept <= left
    assert not gone & left
    assert plan_collection(objects, grace_s=3600) == []


def test_of_many_releases_the_newest_stay_and_those_that_an_alias_has_meant(
    objects: FileObjects, make_artifact: MakeArtifact
):
    store, releases = AdapterStore(objects), ReleaseStore(objects)
    digests = [store.put(make_artifact(seed=seed)) for seed in range(6)]
    for digest in digests:
        release(objects, "b", digest)
    release(objects, "other", digests[0])
    releases.set_alias("b", "r", "prod", 2)
    releases.set_alias("b", "r", "prod", 3)
    age(objects)
    age(objects, "00000004.json", -1e6)  # a young one stays, and what it names
    collect(objects, plan_collection(objects, keep_releases=1))
    assert releases.sequence("b", "r") == [2, 3, 4, 6]
    assert releases.sequence("other", "r") == [1]
    assert sorted(store.list()) == sorted(digests[i] for i in (0, 1, 2, 3, 5))
    shown = {info.key.split("/")[2] for info in objects.list("published/b/")}
    assert shown == {digests[i][:12] for i in (1, 2, 3, 5)}
    assert list(find_faults(objects)) == []
    assert releases.roll_back("b", "r", "prod") == 2
    assert releases.append(releases.get("b", "r", 2)) == 7


def test_a_release_goes_before_what_it_names(objects: FileObjects, make_artifact: MakeArtifact):
    digests = [AdapterStore(objects).put(make_artifact(seed=seed)) for seed in range(2)]
    for digest in digests:
        release(objects, "b", digest)
    age(objects)
    gone: list[str] = []

    class Watched(FileObjects):
        def delete(self, key: str) -> None:
            gone.extend([key] if not key.startswith("probe/") else [])  # gc's own look at the clock
            super().delete(key)

    watched = Watched(objects.root)
    assert collect(watched, plan_collection(watched, keep_releases=1)) == len(gone) == 8
    assert gone[0] == "releases/b/r/00000001.json"


def test_traces_of_dead_writers_and_second_attempts_are_garbage(objects: FileObjects):
    objects.put("shards/f/manifest.json", b'{"attempt": "a1"}')
    for key in ("shards/f/a1/part-0.parquet", "shards/f/a2/part-0.parquet", "shards/g/a3/x", "probe/x"):
        objects.put(key, b"1")
    objects.put("generators/r/manifest.json", b'{"files": {"w": "%s"}}' % (b"a" * 64))
    objects.put(f"generators/r/{'a' * 16}/w", b"1")
    objects.put(f"generators/r/{'b' * 16}/w", b"1")
    (objects.root / "shards/.oral-tmp-1").write_bytes(b"1")
    assert plan_collection(objects) == []  # all of it is young
    age(objects)
    planned = [unit.name for unit in plan_collection(objects)]
    assert planned == sorted(
        [f"generators/r/{'b' * 16}", "probe/x", "shards/.oral-tmp-1", "shards/f/a2", "shards/g/a3"]
    )
    assert collect(objects, plan_collection(objects)) == 5
    assert list(objects.leftovers()) == []


def test_an_unfinished_write_beside_an_adapter_that_is_named_is_collected_and_the_adapter_is_not(
    objects: FileObjects, make_artifact: MakeArtifact
):
    digest = AdapterStore(objects).put(make_artifact())
    Records(objects).commit("corpus", "r", {"digests": [digest]})
    (objects.root / f"adapters/{digest}/.oral-tmp-1").write_bytes(b"1")
    units = plan_collection(objects, grace_s=0.0)
    assert [unit.name for unit in units] == [f"adapters/{digest}/.oral-tmp-1"]
    assert collect(objects, units) == 1 and list(objects.leftovers()) == []
    assert AdapterStore(objects).is_whole(digest)


@pytest.mark.parametrize("key", ["releases/b/r/00000001.json", "shards/f/manifest.json"])
def test_where_a_root_is_damaged_nothing_is_planned(objects: FileObjects, key: str):
    objects.put("shards/f/a/x", b"1")
    objects.put(key, b"{")
    with pytest.raises(StoreError, match=f"{key} .* is damaged"):
        plan_collection(objects, grace_s=0)


def test_fsck_names_what_is_damaged_missing_or_half_written(objects: FileObjects, make_artifact: MakeArtifact):
    store = AdapterStore(objects)
    digests = [store.put(make_artifact(seed=seed)) for seed in range(4)]
    release(objects, "b", *digests)
    assert list(find_faults(objects)) == []
    data = bytearray(objects.get(f"adapters/{digests[0]}/adapter_model.safetensors"))
    data[-10] ^= 1
    objects.put(f"adapters/{digests[0]}/adapter_model.safetensors", bytes(data))
    objects.put(f"published/b/{digests[1][:12]}/adapter_model.safetensors", bytes(data))
    objects.delete(f"adapters/{digests[2]}/adapter_config.json")
    objects.delete(f"published/b/{digests[3][:12]}/adapter_config.json")
    faults = "\n".join(find_faults(objects))
    for part in (
        f"adapters/{digests[0]}/ has digest", f"published/b/{digests[1][:12]}/ has digest",
        f"adapters/{digests[2]}: half-written", f"names adapter {digests[2]}, which is not there",
        f"published/b/{digests[3][:12]}: half-written", f"names published/b/{digests[3][:12]}, which is not there",
    ):  # fmt: skip
        assert part in faults
    assert len(faults.splitlines()) == 6


def test_the_commands_list_delete_check_and_roll_back(
    objects: FileObjects, make_artifact: MakeArtifact, capsys: pytest.CaptureFixture[str]
):
    store = AdapterStore(objects)
    one, two, orphan = (store.put(make_artifact(seed=seed)) for seed in range(3))
    release(objects, "b", one)
    release(objects, "b", two)
    where = ["--store", str(objects.root)]
    assert main(["store", "gc", "--grace-h", "0", *where]) == 0
    assert "1 things" in capsys.readouterr().out
    assert store.has(orphan)
    assert main(["store", "gc", "--grace-h", "0", "--delete", *where]) == 0
    assert not store.has(orphan)
    assert main(["store", "fsck", *where]) == 0
    for command, said in (
        (["alias", "b", "prod", "1"], "release 1"), (["alias", "b", "prod", "latest"], "release 2"),
        (["rollback", "b", "prod"], "release 1"), (["diff", "b", "prod", "latest"], f"~ t0  {one[:12]}"),
        (["show", "b", "prod"], one),
    ):  # fmt: skip
        capsys.readouterr()
        assert main(["release", *command, *where]) == 0
        assert said in capsys.readouterr().out
    assert ReleaseStore(objects).history("b", "r", "prod") == [1, 2, 1]
    assert main(["release", "rollback", "b", "prod", *where]) == 2
    assert main(["release", "alias", "b", "prod", "7", *where]) == 2
    assert main(["store", "gc", "--keep-releases", "0", *where]) == 2
    assert main(["store", "gc", "--keep-releases", "1", "--grace-h", "0", *where]) == 0
    assert "0 things" in capsys.readouterr().out, "prod has meant both"
    with pytest.raises(ReleaseError, match="always the newest"):
        ReleaseStore(objects).set_alias("b", "r", "latest", 1)
    objects.delete(f"adapters/{two}/adapter_config.json")
    with pytest.raises(SystemExit, match="1"):
        main(["store", "fsck", *where])
