"""Releases belong to a base and the name of a configuration; older stores are read on; a store can be copied or moved."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from oral_ray.adapters.artifact import AdapterArtifact
from oral_ray.cli import main
from oral_ray.errors import ReleaseError
from oral_ray.objects import FileObjects
from oral_ray.store.adapters import AdapterStore
from oral_ray.store.fsck import find_faults
from oral_ray.store.garbage import collect, plan_collection
from oral_ray.store.latest import latest_of, latest_releases
from oral_ray.store.releases import Release, ReleasedAdapter, ReleaseStore

MakeArtifact = Callable[..., AdapterArtifact]


def adapter(name: str, uri: str = "") -> ReleasedAdapter:
    return ReleasedAdapter(
        task="t",
        arm="generated",
        adapter_id=name,
        digest=name * 3,
        uri=uri or f"published/b/{name}",
        score=1,
        scores={},
    )


def release(name: str, *adapters: str, generator: str = "g") -> Release:
    made = tuple(adapter(one) for one in adapters)
    return Release(base_id="b", base_fingerprint="f", generator=generator, name=name, adapters=made)


def put_older(objects: FileObjects, seq: int, name: str, *adapters: str, generator: str = "g") -> None:
    """A release as version 0.1.0 wrote it: below the base, the name as `recipe`, absolute uris."""
    said = release(name, *adapters, generator=generator).model_dump(mode="json")
    said["recipe"] = said.pop("name")
    del said["served_name"]
    for row in said["adapters"]:
        row["uri"] = f"file:///long/ago/{row['uri']}"
    objects.put(f"releases/b/{seq:08d}.json", json.dumps(said).encode())


def test_two_configurations_over_one_store_keep_releases_of_their_own(objects: FileObjects):
    store = ReleaseStore(objects)
    assert [
        store.append(release("one", "x")),
        store.append(release("two", "y")),
        store.append(release("one", "x")),
    ] == [1, 1, 1]
    assert store.append(release("one", "z")) == 2
    assert (store.names("b"), store.sequence("b", "one"), store.sequence("b", "two")) == (["one", "two"], [1, 2], [1])
    assert store.latest("b", "two") == release("two", "y")
    assert {name: head.number for name, head in latest_releases(objects)["b"].items()} == {"one": 2, "two": 1}
    assert latest_of(objects, "two")["b"].release == release("two", "y") and latest_of(objects, "three") == {}
    assert store.digest_of("b/x") == "xxx" and store.digest_of("b/y") == "yyy", "ids are found under every name"
    store.set_alias("b", "one", "prod", 1)
    store.set_alias("b", "two", "prod", 1)
    store.set_alias("b", "one", "prod", 2)
    assert (store.history("b", "one", "prod"), store.history("b", "two", "prod")) == ([1, 2], [1])


def test_releases_of_an_older_store_are_of_the_name_that_they_carry_and_numbers_go_on(objects: FileObjects):
    put_older(objects, 1, "one", "x")
    put_older(objects, 2, "two", "y")
    put_older(objects, 3, "one", "z")
    objects.put("aliases/b/prod/00000001.json", b'{"release": 2}')
    objects.put("aliases/b/prod/00000002.json", b'{"release": 1}')
    store = ReleaseStore(objects)
    assert (store.names("b"), store.sequence("b", "one"), store.sequence("b", "two")) == (["one", "two"], [1, 3], [2])
    assert {name: head.number for name, head in latest_releases(objects)["b"].items()} == {"one": 3, "two": 2}
    assert (store.alias("b", "one", "prod"), store.alias("b", "two", "prod")) == (1, 2)
    assert store.append(release("one", "w")) == 4
    assert store.append(release("two", "y")) == 2, "an equal one is not added again"
    assert store.append(release("new", "x")) == 1
    assert objects.exists("releases/b/one/00000004.json")
    assert store.sequence("b", "one") == [1, 3, 4]
    assert {name: head.number for name, head in latest_releases(objects)["b"].items()} == {"new": 1, "one": 4, "two": 2}
    store.set_alias("b", "one", "prod", 4)
    assert store.roll_back("b", "one", "prod") == 1
    assert store.digest_of("b/y") == "yyy"


def test_a_damaged_older_release_hides_no_other_and_fsck_names_it(objects: FileObjects):
    put_older(objects, 1, "one")
    objects.put("releases/b/00000002.json", b"{")
    assert ReleaseStore(objects).sequence("b", "one") == [1]
    assert ReleaseStore(objects).append(release("one", "w")) == 2
    assert any("delete releases/b/00000002.json" in fault for fault in find_faults(objects))


def test_a_release_that_was_replaced_is_read_again(objects: FileObjects):
    store = ReleaseStore(objects)
    store.append(release("one", "x"))
    assert latest_of(objects, "one")["b"].release.adapters[0].adapter_id == "x"
    objects.delete("releases/b/one/00000001.json")
    store.append(release("one", "y"))
    assert latest_of(objects, "one")["b"].release.adapters[0].adapter_id == "y"


def test_a_copied_store_says_where_its_adapters_are(
    objects: FileObjects, make_artifact: MakeArtifact, tmp_path: Path, capsys
):
    digest = AdapterStore(objects).put(make_artifact(seed=1))
    uri = AdapterStore(objects).publish(digest, "published", "b", "spam-1")
    made = ReleasedAdapter(task="t", arm="a", adapter_id="spam-1", digest=digest, uri=uri, score=1.0, scores={})
    assert made.uri == "published/b/spam-1"
    ReleaseStore(objects).append(release("one").model_copy(update={"adapters": (made,)}))
    put_older(objects, 7, "old", "x")
    assert str(objects.root) not in (objects.root / "releases/b/one/00000001.json").read_text()
    moved = tmp_path / "moved"
    shutil.copytree(objects.root, moved)
    for command in (["list"], ["list", "--json"], ["release", "show", "b"]):
        assert main([*command, "--store", str(moved)]) == 0
        said = capsys.readouterr().out
        assert f"file://{moved}/published/b/spam-1" in said and f"file://{moved}/published/b/x" in said
        assert str(objects.root) not in said and "long/ago" not in said


def test_the_commands_ask_for_a_name_where_a_base_has_several(objects: FileObjects, capsys: pytest.CaptureFixture[str]):
    where = ["--store", str(objects.root)]
    for name in ("one", "two"):
        ReleaseStore(objects).append(release(name, "x"))
    assert main(["release", "show", "b", *where]) == 0
    assert capsys.readouterr().out.count('"name": ') == 2
    assert main(["release", "show", "b", "--name", "two", *where]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "two"
    assert main(["release", "alias", "b", "prod", "1", *where]) == 2
    assert "base 'b' has releases of one, two; say which with --name" in capsys.readouterr().err
    assert main(["release", "alias", "b", "prod", "1", "--name", "two", *where]) == 0
    assert main(["release", "show", "b", "prod", *where]) == 0, "only one of them has that alias"
    assert '"name": "two"' in capsys.readouterr().out
    assert main(["release", "diff", "b", "1", "1", "--name", "zwei", *where]) == 2
    assert "no release of 'zwei'; there are one, two" in capsys.readouterr().err
    assert main(["release", "show", "b", "9", *where]) == 2
    assert "base 'b' has no release '9'; there are one: [1]; two: [1]" in capsys.readouterr().err


def test_gc_keeps_the_newest_releases_of_every_name(objects: FileObjects):
    for number in range(3):
        for name in ("one", "two"):
            ReleaseStore(objects).append(release(name, generator=str(number)))
    put_older(objects, 1, "old", generator="1")
    put_older(objects, 2, "old", generator="2")
    collect(objects, plan_collection(objects, grace_s=-60, keep_releases=1))
    store = ReleaseStore(objects)
    assert {name: store.sequence("b", name) for name in store.names("b")} == {"old": [2], "one": [3], "two": [3]}


def test_one_damaged_release_hides_no_other_in_the_list(objects: FileObjects, capsys: pytest.CaptureFixture[str]):
    ReleaseStore(objects).append(release("one", "x"))
    objects.put("releases/a/one/00000001.json", b"{")
    assert main(["list", "--store", str(objects.root)]) == 0
    assert "b  one  release 1" in capsys.readouterr().out


def test_a_release_that_is_not_there_is_an_error_that_lists_what_is(objects: FileObjects):
    ReleaseStore(objects).append(release("one"))
    with pytest.raises(ReleaseError, match=r"no release 2 of 'one'; there are \[1\]"):
        ReleaseStore(objects).get("b", "one", 2)


@pytest.mark.parametrize(
    "command",
    [["list"], ["store", "fsck"], ["store", "gc"], ["release", "show", "b"], ["release", "alias", "b", "prod", "1"],
     ["release", "rollback", "b", "prod"], ["release", "diff", "b", "1", "2"], ["pull", "0" * 64, "there"]],
)  # fmt: skip
def test_a_store_that_is_not_there_is_an_error_and_is_not_made(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--store", str(tmp_path / "typo")]) == 2
    assert (
        capsys.readouterr().err
        == f"error: there is no store at {tmp_path}/typo; check the path (--store or ORAL_STORE)\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_an_empty_store_is_said_to_be_empty(objects: FileObjects, capsys: pytest.CaptureFixture[str]):
    objects.root.mkdir(parents=True, exist_ok=True)
    assert main(["store", "fsck", "--store", str(objects.root)]) == 0
    assert capsys.readouterr().out == f"{objects.root} is empty: nothing is stored there\n"
    objects.put("records/scores/x.json", b"{}")
    assert main(["store", "fsck", "--store", str(objects.root)]) == 0
    assert capsys.readouterr().out == f"{objects.root} is whole\n"
