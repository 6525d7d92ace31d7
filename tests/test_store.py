"""What the store promises: digests are checked, markers come last, the first writer wins, history is only appended."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from oral_ray.adapters.artifact import AdapterArtifact, read_folder, rebased
from oral_ray.bases.catalog import describe_base
from oral_ray.config import ConditionConfig
from oral_ray.errors import ArtifactError, BaseModelError, OralError, ReleaseError, StoreError
from oral_ray.objects import FileObjects
from oral_ray.store.adapters import AdapterStore, Use
from oral_ray.store.bases import BaseStore, stored_probes
from oral_ray.store.fsck import find_faults
from oral_ray.store.records import Records
from oral_ray.store.releases import Release, ReleasedAdapter, ReleaseStore

MakeArtifact = Callable[..., AdapterArtifact]
FILES = ("adapter_model.safetensors", "provenance.json", "adapter_config.json")


class Recorded(FileObjects):
    """A folder store that remembers what was written, in order, and can run something before a create."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.writes: list[str] = []
        self.before_create: list[Callable[[], object]] = []

    def put_if_absent(self, key: str, data: bytes) -> bool:
        if self.before_create:
            self.before_create.pop()()
        self.writes.append(key)
        return super().put_if_absent(key, data)

    def upload(self, path: Path, key: str) -> None:
        self.writes.append(key)
        super().upload(path, key)


@pytest.fixture
def recorded(tmp_path: Path) -> Recorded:
    return Recorded(tmp_path / "store")


def test_an_adapter_comes_back_as_it_was_put_and_is_written_once(recorded: Recorded, make_artifact: MakeArtifact):
    artifact, store = make_artifact(seed=1), AdapterStore(recorded)
    digest = store.put(artifact)
    found = store.get(digest)
    assert (found.digest, found.config, found.provenance) == (digest, artifact.config, artifact.provenance)
    assert all((found.tensors[name] == tensor).all() for name, tensor in artifact.tensors.items())
    recorded.writes.clear()
    assert store.put(artifact) == digest
    assert recorded.writes == []


def test_adapter_config_is_the_last_file_of_a_stored_and_of_a_published_adapter(
    recorded: Recorded, make_artifact: MakeArtifact
):
    store = AdapterStore(recorded)
    digest = store.put(make_artifact())
    assert recorded.writes == [f"adapters/{digest}/{name}" for name in FILES]
    recorded.writes.clear()
    store.publish(digest, "published", "base-1", "task-a")
    assert recorded.writes == [f"published/base-1/task-a/{name}" for name in ("README.md", *FILES)]


def test_a_half_written_adapter_is_not_listed_not_read_and_finished_by_the_next_put(
    objects: FileObjects, make_artifact: MakeArtifact
):
    store, artifact = AdapterStore(objects), make_artifact()
    digest = store.put(artifact)
    objects.delete(f"adapters/{digest}/adapter_config.json")
    assert list(store.list()) == []
    with pytest.raises(ArtifactError, match=f"no adapter '{digest}'"):
        store.get(digest)
    store.put(artifact)
    assert list(store.list()) == [digest]
    assert store.get(digest).digest == digest


@pytest.mark.parametrize(
    ("name", "damage"),
    [(name, damage) for name in FILES for damage in ("cut", "flip", "empty") if (name, damage) != (FILES[1], "flip")],
)  # a word of the provenance may change: it is not in the digest
def test_changed_bytes_are_never_handed_out(
    objects: FileObjects, make_artifact: MakeArtifact, tmp_path: Path, name: str, damage: str
):
    store = AdapterStore(objects)
    digest = store.put(make_artifact())
    key = f"adapters/{digest}/{name}"
    data = bytearray(objects.get(key))
    data[-10] ^= 1
    objects.put(key, {"cut": bytes(data[:-7]), "flip": bytes(data), "empty": b""}[damage])
    for ask in (
        lambda: store.get(digest),
        lambda: store.publish(digest, "published", "base", "id"),
        lambda: store.pull(digest, tmp_path / "pulled"),
    ):
        with pytest.raises(ArtifactError, match=f"{digest[:16]}.* damaged|damaged"):
            ask()
    assert not (tmp_path / "pulled").exists()
    assert list(objects.list("published/")) == []


def test_an_unknown_digest_is_an_error_that_names_it(objects: FileObjects):
    with pytest.raises(ArtifactError, match="no adapter 'abc' in file://"):
        AdapterStore(objects).get("abc")
    with pytest.raises(OralError, match="not a plain relative name"):
        AdapterStore(objects).get("../abc")


def test_a_published_adapter_is_a_folder_that_reads_back_with_its_card(
    objects: FileObjects, make_artifact: MakeArtifact
):
    store, artifact = AdapterStore(objects), make_artifact()
    uri = store.publish(store.put(artifact), "published", "base-1", "task-a")
    folder = Path(uri.removeprefix("file://"))
    assert folder == objects.root / "published/base-1/task-a"
    assert read_folder(folder).digest == artifact.digest
    assert artifact.digest in (folder / "README.md").read_text()
    assert store.publish(artifact.digest, "published", "base-1", "task-a") == uri


def test_a_published_id_never_names_another_adapter(objects: FileObjects, make_artifact: MakeArtifact):
    store = AdapterStore(objects)
    first, second = store.put(make_artifact(seed=1)), store.put(make_artifact(seed=2))
    store.publish(first, "published", "base-1", "task-a")
    before = snapshot(objects)
    with pytest.raises(ArtifactError, match="published/base-1/task-a/ holds another adapter"):
        store.publish(second, "published", "base-1", "task-a")
    assert snapshot(objects) == before


def test_an_id_half_published_by_one_adapter_is_not_completed_by_another(
    objects: FileObjects, make_artifact: MakeArtifact
):
    store = AdapterStore(objects)
    first, second = store.put(make_artifact(seed=1)), store.put(make_artifact(seed=2))
    store.publish(first, "published", "base-1", "task-a")
    objects.delete("published/base-1/task-a/adapter_config.json")
    with pytest.raises(ArtifactError, match="holds another adapter"):
        store.publish(second, "published", "base-1", "task-a")
    assert not objects.exists("published/base-1/task-a/adapter_config.json")
    store.publish(first, "published", "base-1", "task-a")


def test_what_is_published_and_damaged_is_not_published_again(objects: FileObjects, make_artifact: MakeArtifact):
    store = AdapterStore(objects)
    digest = store.put(make_artifact())
    store.publish(digest, "published", "base-1", "task-a")
    key = "published/base-1/task-a/adapter_model.safetensors"
    objects.put(key, objects.get(key)[:-1] + b"?")
    with pytest.raises(ArtifactError, match=r"published/base-1/task-a/ has digest .* changed or damaged"):
        store.publish(digest, "published", "base-1", "task-a")


def test_a_pulled_adapter_is_the_stored_one(objects: FileObjects, make_artifact: MakeArtifact, tmp_path: Path):
    store, artifact = AdapterStore(objects), make_artifact()
    folder = store.pull(store.put(artifact), tmp_path / "x/y")
    assert read_folder(folder).digest == artifact.digest
    with pytest.raises(ArtifactError, match="no adapter '0000"):
        store.pull("0" * 64, tmp_path / "z")


def test_the_first_record_of_a_piece_of_work_stays(objects: FileObjects):
    records = Records(objects)
    assert records.get("corpus", "f") is None
    assert records.commit("corpus", "f", {"a": 1}) == {"a": 1}
    assert records.commit("corpus", "f", {"a": 2}) == {"a": 1}
    assert Records(objects).get("corpus", "f") == {"a": 1}
    assert records.get("scores", "f") is None


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[1]", b"3"])
def test_a_damaged_record_is_an_error_that_says_what_to_delete(objects: FileObjects, data: bytes):
    objects.put("records/corpus/f.json", data)
    with pytest.raises(StoreError, match=r"'records/corpus/f.json'.* delete it"):
        Records(objects).get("corpus", "f")


def release(generator: str, base: str = "b", adapters: tuple[ReleasedAdapter, ...] = (), name: str = "n") -> Release:
    return Release(base=base, base_fingerprint="f", generator=generator, name=name, adapters=adapters)


def test_releases_are_numbered_from_one_and_the_latest_is_the_highest(objects: FileObjects):
    store = ReleaseStore(objects)
    assert (store.latest("b", "n"), store.sequence("b", "n"), store.bases(), store.names("b")) == (None, [], [], [])
    assert [store.append(release(str(number))) for number in range(11)] == list(range(1, 12))
    assert store.sequence("b", "n") == list(range(1, 12))
    assert store.latest("b", "n") == release("10")
    assert store.get("b", "n", 1) == release("0")
    assert store.append(release("0", base="a")) == 1
    assert store.bases() == ["a", "b"]


def test_a_release_equal_to_the_latest_is_not_added_again(objects: FileObjects):
    store = ReleaseStore(objects)
    assert [store.append(release(recipe)) for recipe in ("x", "x", "y", "y", "x")] == [1, 1, 2, 2, 3]


def test_an_append_that_comes_second_takes_the_next_number(recorded: Recorded):
    store = ReleaseStore(recorded)
    recorded.before_create.append(lambda: ReleaseStore(FileObjects(recorded.root)).append(release("theirs")))
    assert store.append(release("ours")) == 2
    assert [store.get("b", "n", number).generator for number in store.sequence("b", "n")] == ["theirs", "ours"]


def test_releases_appended_at_once_all_survive(objects: FileObjects):
    start, recipes = threading.Barrier(8), [f"r{number}" for number in range(8)]

    def append(recipe: str) -> None:
        start.wait()
        ReleaseStore(objects).append(release(recipe))

    threads = [threading.Thread(target=append, args=(recipe,)) for recipe in recipes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = ReleaseStore(objects)
    assert store.sequence("b", "n") == list(range(1, 9))
    assert sorted(store.get("b", "n", number).generator for number in range(1, 9)) == recipes


def test_a_damaged_release_is_an_error_that_names_it(objects: FileObjects):
    store = ReleaseStore(objects)
    store.append(release("x"))
    objects.put("releases/b/n/00000001.json", b'{"base": "b"}')
    with pytest.raises(ReleaseError, match=r"release 1 of base 'b' is damaged; delete releases/b/n/00000001\.json"):
        store.latest("b", "n")


def test_a_file_that_is_no_release_is_passed_over(objects: FileObjects):
    objects.put("releases/b/n/notes.txt", b"")
    objects.put("releases/b/n/00000007.json.bak", b"")
    assert ReleaseStore(objects).sequence("b", "n") == []
    assert ReleaseStore(objects).append(release("x")) == 1


def test_a_published_adapter_is_found_by_base_and_id_in_any_release(objects: FileObjects):
    def adapter(name: str) -> ReleasedAdapter:
        return ReleasedAdapter(task="t", arm="generated", adapter_id=name, digest=name * 3, uri="u", score=1, scores={})

    store = ReleaseStore(objects)
    store.append(release("1", adapters=(adapter("x"), adapter("y"))))
    store.append(release("2", adapters=(adapter("z"),)))
    assert store.digest_of("b/x") == "xxx"
    assert store.digest_of("b/z") == "zzz"
    with pytest.raises(ReleaseError, match="no published adapter 'b/w'; base 'b' has x, y, z"):
        store.digest_of("b/w")
    with pytest.raises(ReleaseError, match="base 'c' has none"):
        store.digest_of("c/x")


def test_a_base_in_the_store_has_a_record_and_any_other_is_named(objects: FileObjects, tiny_bert: Path):
    base_store = BaseStore(objects, "bases")
    with pytest.raises(BaseModelError, match=r"base 'v1' is not in file://.*/bases; import it"):
        base_store.record("v1")
    for name in ("tokenizer.json", "model.safetensors", "config.json"):
        assert not base_store.has("v1")
        objects.upload(tiny_bert / name, f"bases/v1/{name}")
    assert base_store.record("v1") == describe_base(objects, "bases/v1/", "v1")
    objects.delete("bases/v1/model.safetensors")
    assert base_store.has("v1")
    with pytest.raises(BaseModelError, match="no safetensors weights"):
        base_store.record("v1")


def test_probes_are_computed_once_a_base_and_settings(objects: FileObjects, tiny_bert: Path):
    for name in ("tokenizer.json", "model.safetensors", "config.json"):
        objects.upload(tiny_bert / name, f"bases/v1/{name}")
    record = BaseStore(objects, "bases").record("v1")
    first = stored_probes(objects, record, ConditionConfig(num_probes=3))
    objects.delete("bases/v1/model.safetensors")
    again = stored_probes(objects, record, ConditionConfig(num_probes=3))
    assert sorted(first) == sorted(again)
    assert all((first[name] == again[name]).all() for name in first)
    with pytest.raises(OralError):  # other settings need the weights, which are gone
        stored_probes(objects, record, ConditionConfig(num_probes=4))


@pytest.mark.parametrize("data", [b"", b"{}", bytes(100)])
def test_damaged_probes_are_computed_again(objects: FileObjects, tiny_bert: Path, data: bytes):
    for name in ("tokenizer.json", "model.safetensors", "config.json"):
        objects.upload(tiny_bert / name, f"bases/v1/{name}")
    record = BaseStore(objects, "bases").record("v1")
    first = stored_probes(objects, record, ConditionConfig(num_probes=3))
    [info] = objects.list("probes/")
    whole = objects.get(info.key)
    objects.put(info.key, data)
    again = stored_probes(objects, record, ConditionConfig(num_probes=3))
    assert all((first[name] == again[name]).all() for name in first)
    assert objects.get(info.key) == whole


def snapshot(objects: FileObjects) -> dict[str, bytes]:
    return {info.key: objects.get(info.key) for info in objects.list()}


def test_a_damaged_adapter_is_replaced_when_it_is_stored_again(objects: FileObjects, make_artifact: MakeArtifact):
    store, artifact = AdapterStore(objects), make_artifact(seed=1)
    digest = store.put(artifact)
    for name in ("adapter_model.safetensors", "provenance.json", "adapter_config.json"):
        key = f"adapters/{digest}/{name}"
        whole = objects.get(key)
        for damage in (lambda key=key: objects.put(key, b"{"), lambda key=key: objects.delete(key)):
            damage()
            assert not store.is_whole(digest)
            assert store.put(artifact) == digest
            assert store.is_whole(digest) and objects.get(key) == whole


def test_a_record_whose_work_is_lost_is_replaced_and_no_other(objects: FileObjects):
    records = Records(objects)
    records.commit("corpus", "f", {"a": 1})
    assert records.commit("corpus", "f", {"a": 2}, holds=lambda kept: kept["a"] == 1) == {"a": 1}
    assert records.commit("corpus", "f", {"a": 2}, holds=lambda kept: kept["a"] != 1) == {"a": 2}
    assert records.get("corpus", "f") == {"a": 2}


def test_what_is_released_for_another_base_names_that_base_and_says_what_it_was_made_from(
    objects: FileObjects, make_artifact: MakeArtifact
):
    made = make_artifact(seed=1, task="spam")
    assert rebased(made, "small-llama", "f") is made, "nothing changes"
    moved = rebased(made, "t3", "f3", "/models/chat")
    assert moved.config["base_model_name_or_path"] == "/models/chat" and moved.digest != made.digest
    assert all(torch.equal(moved.tensors[name], made.tensors[name]) for name in made.tensors)
    said = moved.provenance
    assert (said.base, said.base_fingerprint, said.served_name) == ("t3", "f3", "/models/chat")
    assert (said.source, said.source_base, said.source_base_fingerprint) == (made.digest, "small-llama", "f")
    assert (said.origin, said.task) == ("trained", "spam")
    again = rebased(made, "small-llama", "f2")
    assert again.digest == made.digest and again.provenance.base_fingerprint == "f2", "another upload of the same base"
    store = AdapterStore(objects)
    store.publish(store.put(moved), "published", "t3", "mail-1", use=Use(said, "mail", "reuse_new"))
    card = objects.get("published/t3/mail-1/README.md").decode()
    assert 'base_model: "/models/chat"\n' in card and "- task: mail\n- released as: reuse_new\n" in card
    assert "(`trained`, made for `small-llama` (fingerprint `f`)) for base `/models/chat` (fingerprint `f3`)" in card
    assert store.published_for("published/t3/mail-1") == said and store.published_for("published/t3/other") is None


def test_fsck_says_which_record_names_what_is_not_there_and_what_makes_it_again(objects: FileObjects):
    for kind, record in {
        "corpus": {"digests": ["c" * 64]}, "gate": {"digest": "d" * 64}, "scores": {"digest": "e" * 64},
        "static": {"digest": "f" * 64}, "generated": {"digest": "a" * 64},
    }.items():  # fmt: skip
        Records(objects).commit(kind, "x", record)
    Records(objects).commit("gate", "nothing-won", {"digest": ""})
    objects.put("records/corpus/bad.json", b"{")
    faults = list(find_faults(objects))
    assert [fault.partition(",")[0] for fault in faults] == [
        "record 'records/corpus/bad.json' is damaged; delete it to do the work again",
        f"records/corpus/x.json names adapter {'c' * 64}", f"records/gate/x.json names adapter {'d' * 64}",
        f"records/generated/x.json names adapter {'a' * 64}", f"records/static/x.json names adapter {'f' * 64}",
    ]  # fmt: skip
    assert "jobs/corpus.py trains it again" in faults[1]
