"""Adapters through files: the digest is that of the adapter in memory, folders appear whole, memory stays that of parts."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_fixtures import contents
from safetensors.torch import save_file

from oral_ray.adapters import streamed
from oral_ray.adapters.artifact import AdapterArtifact, read_folder, write_folder
from oral_ray.adapters.streamed import arriving, folder_digest
from oral_ray.config import S3Config
from oral_ray.errors import ArtifactError, StoreError
from oral_ray.objects import FileObjects, S3Objects
from oral_ray.store.adapters import AdapterStore

MakeArtifact = Callable[..., AdapterArtifact]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
DIGEST = "0" * 64


@pytest.mark.parametrize("part_bytes", [1, 7, 1 << 20])
def test_the_digest_of_a_folder_is_that_of_the_adapter_in_memory(
    make_artifact: MakeArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_bytes: int
):
    monkeypatch.setattr(streamed, "PART_BYTES", part_bytes)
    artifact = make_artifact(seed=3)
    assert folder_digest(write_folder(artifact, tmp_path / "a")) == artifact.digest


@pytest.mark.parametrize(
    "dtype", ["float64", "float16", "bfloat16", "float8_e4m3fn", "int64", "int8", "uint16", "bool"]
)
def test_so_it_is_for_every_type_of_tensor(make_artifact: MakeArtifact, tmp_path: Path, dtype: str):
    folder = write_folder(make_artifact(), tmp_path / "a")
    tensors = {"b": torch.ones(3, 2), "a": torch.zeros(()), "none": torch.zeros(0, 4)}
    save_file({name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}, folder / WEIGHTS)
    assert folder_digest(folder) == read_folder(folder).digest


def test_so_it_is_for_tensors_that_lie_in_another_order_than_their_names(make_artifact: MakeArtifact, tmp_path: Path):
    folder = write_folder(make_artifact(), tmp_path / "a")
    places = {"b": [0, 4], "c": [4, 8], "a": [8, 12]}
    header = json.dumps(
        {name: {"dtype": "F32", "shape": [1], "data_offsets": at} for name, at in places.items()}
    ).encode()
    (folder / WEIGHTS).write_bytes(
        len(header).to_bytes(8, "little") + header + torch.tensor([1.0, 2.0, 3.0]).numpy().tobytes()
    )
    assert read_folder(folder).tensors["a"].item() == 3.0
    assert folder_digest(folder) == read_folder(folder).digest


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
@pytest.mark.parametrize("damage", ["cut", "empty", "lost", "folder"])
def test_a_damaged_folder_is_no_adapter_and_nothing_of_it_is_stored(
    objects: FileObjects, make_artifact: MakeArtifact, tmp_path: Path, name: str, damage: str
):
    path = write_folder(make_artifact(), tmp_path / "a") / name
    data = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "lost":
        path.write_bytes(data[:-7] if damage == "cut" else b"")
    with pytest.raises(ArtifactError, match=r"damaged|missing"):
        AdapterStore(objects).put_folder(tmp_path / "a")
    assert list(objects.list()) == []


def test_a_folder_of_links_as_in_the_cache_of_a_hub_is_put_as_what_they_lead_to(
    objects: FileObjects, make_artifact: MakeArtifact, tmp_path: Path
):
    artifact = make_artifact()
    (tmp_path / "blobs").mkdir()
    snapshot = write_folder(artifact, tmp_path / "snapshots" / "abc")
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(tmp_path / "blobs" / str(number))
        path.symlink_to(f"../../blobs/{number}")
    store = AdapterStore(objects)
    assert folder_digest(snapshot) == store.put_folder(snapshot) == artifact.digest
    assert store.get(artifact.digest).digest == artifact.digest
    assert not any(path.is_symlink() for path in objects.root.rglob("*"))


@pytest.mark.parametrize("kind", ["objects", "s3_objects"])
def test_a_folder_that_is_put_is_the_adapter_that_is_put(
    kind: str, request: pytest.FixtureRequest, make_artifact: MakeArtifact, tmp_path: Path
):
    store, artifact = AdapterStore(request.getfixturevalue(kind)), make_artifact(seed=1)
    folder = write_folder(artifact, tmp_path / "a")
    assert store.put_folder(folder) == store.put(artifact) == artifact.digest
    found = store.get(artifact.digest)
    assert (found.digest, found.provenance) == (artifact.digest, artifact.provenance)
    assert list(store.list()) == [artifact.digest]


def test_a_folder_is_put_once_its_marker_last_and_finished_after_a_killed_writer(
    objects: FileObjects, make_artifact: MakeArtifact, tmp_path: Path
):
    written: list[str] = []

    class Recorded(FileObjects):
        def put_if_absent(self, key: str, data: bytes) -> bool:
            written.append(key.rpartition("/")[2])
            return super().put_if_absent(key, data)

        def upload(self, path: Path, key: str) -> None:
            written.append(key.rpartition("/")[2])
            super().upload(path, key)

    store, folder = AdapterStore(Recorded(objects.root)), write_folder(make_artifact(), tmp_path / "a")
    digest = store.put_folder(folder)
    assert written == ["provenance.json", WEIGHTS, CONFIG]
    written.clear()
    store.put_folder(folder)
    assert written == ["provenance.json"], "a create that is refused; nothing else"
    objects.delete(f"adapters/{digest}/{CONFIG}")
    objects.delete(f"adapters/{digest}/{WEIGHTS}")
    store.put_folder(folder)
    assert store.get(digest).digest == digest


def test_weights_that_change_while_they_are_stored_get_no_marker(
    objects: FileObjects, make_artifact: MakeArtifact, tmp_path: Path
):
    folder = write_folder(make_artifact(), tmp_path / "a")

    class Meanwhile(FileObjects):
        def upload(self, path: Path, key: str) -> None:
            path.write_bytes(path.read_bytes())
            os.utime(path, ns=(0, 0))
            super().upload(path, key)

    with pytest.raises(ArtifactError, match="was changed while it was stored"):
        AdapterStore(Meanwhile(objects.root)).put_folder(folder)
    assert list(AdapterStore(objects).list()) == []


def test_a_folder_appears_whole_by_one_rename_and_a_failure_leaves_nothing(tmp_path: Path):
    with arriving(tmp_path / "x" / "new", DIGEST) as temporary:
        (temporary / CONFIG).write_text("1")
        assert not (tmp_path / "x" / "new").exists()
    assert [path.name for path in (tmp_path / "x" / "new").iterdir()] == [CONFIG]
    with pytest.raises(KeyError), arriving(tmp_path / "x" / "failed", DIGEST) as temporary:
        (temporary / CONFIG).write_text("1")
        raise KeyError
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["new"]


def test_in_a_folder_that_has_this_adapter_the_marker_goes_first_and_comes_last(
    make_artifact: MakeArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    artifact, folder = make_artifact(1), tmp_path / "mine"
    write_folder(artifact, folder)
    (folder / "notes.txt").write_text("old")
    seen: list[set[str]] = []
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        seen.append({path.name for path in folder.iterdir()})
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with arriving(folder, artifact.digest) as temporary:
        write_folder(artifact, temporary)
    assert [CONFIG in names for names in seen] == [False] * 3 and all("notes.txt" in names for names in seen)
    assert folder_digest(folder) == artifact.digest and (folder / "notes.txt").read_text() == "old"


def test_a_folder_that_holds_something_else_is_named_and_left_alone(make_artifact: MakeArtifact, tmp_path: Path):
    mine, other = make_artifact(1), make_artifact(2)
    write_folder(mine, tmp_path / "mine")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/plan.txt").write_text("mine")
    for name, words in {
        "mine": f"holds adapter {mine.digest[:16]}, not {other.digest[:16]}",
        "notes": "'plan.txt'",
    }.items():
        before = contents(tmp_path)
        with (
            pytest.raises(ArtifactError, match=rf"{name} holds .*choose another folder") as caught,
            arriving(tmp_path / name, other.digest),
        ):
            raise AssertionError("nothing is fetched for a folder that is taken")
        assert words in str(caught.value) and contents(tmp_path) == before


def test_a_folder_that_is_taken_while_files_arrive_is_left_alone(make_artifact: MakeArtifact, tmp_path: Path):
    mine, other = make_artifact(1), make_artifact(2)
    with pytest.raises(ArtifactError, match="holds adapter"), arriving(tmp_path / "mine", other.digest) as temporary:
        write_folder(other, temporary)
        write_folder(mine, tmp_path / "mine")
    assert folder_digest(tmp_path / "mine") == mine.digest and [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StoreError, match=r"cannot write .*/file/a: .*; choose another"),
        arriving(tmp_path / "file" / "a", DIGEST),
    ):
        pass


SMALL = S3Config(concurrency=3, part_bytes=5 << 20)


@pytest.mark.parametrize("num_bytes", [0, 1, (5 << 20) - 1, 5 << 20, (5 << 20) + 1, 11 << 20])
def test_parts_of_a_download_fall_into_their_places(s3_objects: S3Objects, tmp_path: Path, num_bytes: int):
    data = (bytes(range(251)) * (num_bytes // 251 + 1))[:num_bytes]
    (tmp_path / "up").write_bytes(data)
    store = S3Objects(s3_objects.bucket, "p", SMALL)
    store.upload(tmp_path / "up", "a")
    store.download("a", tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == data == store.get("a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["down", "up"]


def test_an_object_that_is_replaced_while_its_parts_are_read_is_not_put_together(
    s3_objects: S3Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = S3Objects(s3_objects.bucket, "p", SMALL)
    store.put("a", bytes(11 << 20))
    real = store._part

    def part(name: str, file: int, start: int):
        if start == 10 << 20:
            s3_objects._client.put_object(Bucket=s3_objects.bucket, Key="p/a", Body=b"1" * (11 << 20))
        return real(name, file, start)

    monkeypatch.setattr(store, "_part", part)
    with pytest.raises(StoreError, match=r"'a' in s3://.* was replaced while it was read"):
        store.download("a", tmp_path / "down")
    assert list(tmp_path.iterdir()) == []


def test_memory_of_put_and_pull_is_that_of_parts_and_not_of_adapters(s3_objects: S3Objects, tmp_path: Path):
    """96 MB of weights through parts of 5 MiB, 2 at once: far less than the file, in a process of its own."""
    code = f"""
import sys
from pathlib import Path
import psutil
from oral_ray.bench.harness import high_water_bytes, reset_high_water
from oral_ray.bench.store import _make
from oral_ray.config import S3Config
from oral_ray.objects import S3Objects
from oral_ray.store.adapters import AdapterStore
work = Path({str(tmp_path)!r})
objects = S3Objects({s3_objects.bucket!r}, "m", S3Config(concurrency=2, part_bytes=5 << 20))
store = AdapterStore(objects)
store.pull(store.put_folder(_make(work / "warm", 1 << 20, 1)), work / "warmed")
_make(work / "large", 96_000_000, 2)
reset_high_water()
before = psutil.Process().memory_info().rss
store.pull(store.put_folder(work / "large"), work / "pulled")
print(high_water_bytes() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert int(done.stdout) < 40e6
