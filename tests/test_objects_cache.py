"""The read cache: what was read once is not read again, no damaged byte is used, and it takes no more room than it may."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from oral_ray.adapters.artifact import AdapterArtifact, read_folder
from oral_ray.config import build_config
from oral_ray.errors import ArtifactError
from oral_ray.objects import FileObjects, ReadCache, S3Objects, open_objects
from oral_ray.store.adapters import AdapterStore

MakeArtifact = Callable[..., AdapterArtifact]


class Far(FileObjects):
    """A folder store that counts reads and has a cache, as one across a network would."""

    def __init__(self, root: Path, cache: ReadCache) -> None:
        super().__init__(root)
        self.cache, self.reads = cache, 0

    def get(self, key: str) -> bytes:
        self.reads += 1
        return super().get(key)

    def download(self, key: str, path: Path) -> None:
        self.reads += 1
        super().download(key, path)


@pytest.fixture
def far(tmp_path: Path) -> Far:
    return Far(tmp_path / "far", ReadCache(tmp_path / "cache", 10**9))


def entries(cache: ReadCache) -> list[str]:
    return sorted(path.name for path in cache.folder.iterdir())


@pytest.mark.parametrize("first", ["get", "pull"])
def test_what_was_read_once_is_not_read_from_the_store_again(
    far: Far, make_artifact: MakeArtifact, tmp_path: Path, first: str
):
    store, artifact = AdapterStore(far), make_artifact()
    digest = store.put(artifact)
    store.get(digest) if first == "get" else store.pull(digest, tmp_path / "first")
    far.reads = 0
    shutil.rmtree(far.root / "adapters")
    assert store.get(digest).provenance == artifact.provenance
    assert read_folder(store.pull(digest, tmp_path / "again")).digest == digest
    assert far.reads == 0


@pytest.mark.parametrize("damage", ["flip", "cut", "lost", "no provenance"])
def test_a_damaged_entry_is_never_handed_out_but_fetched_again(
    far: Far, make_artifact: MakeArtifact, tmp_path: Path, damage: str
):
    store = AdapterStore(far)
    digest = store.put(make_artifact())
    store.get(digest)
    [name] = entries(far.cache)  # type: ignore[arg-type]
    weights = far.cache.folder / name / "adapter_model.safetensors"  # type: ignore[union-attr]
    data = bytearray(weights.read_bytes())
    data[-10] ^= 1
    if damage == "lost":
        weights.unlink()
    elif damage == "no provenance":
        (weights.parent / "provenance.json").write_text("{")
    else:
        weights.write_bytes(data[:-7] if damage == "cut" else data)
    far.reads = 0
    assert read_folder(store.pull(digest, tmp_path / "pulled")).digest == digest
    assert far.reads == 3
    assert store.get(digest).digest == digest
    assert far.reads == 3, "the fetched one is kept"


def test_a_damaged_object_is_refused_and_not_kept(far: Far, make_artifact: MakeArtifact):
    store = AdapterStore(far)
    digest = store.put(make_artifact())
    key = f"adapters/{digest}/adapter_model.safetensors"
    data = far.get(key)
    far.put(key, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ArtifactError, match="changed or damaged"):
        store.get(digest)
    assert not far.cache.folder.exists()  # type: ignore[union-attr]
    far.put(key, data)
    assert store.get(digest).digest == digest


def filled(folder: Path, name: str, num_bytes: int) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "data").write_bytes(bytes(num_bytes))
    return folder / name


def has(cache: ReadCache, name: str, folder: Path) -> bool:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return cache.copy(name, folder, lambda _: True)


def test_the_least_recently_used_entry_makes_room_and_the_bound_holds(tmp_path: Path):
    cache, copied = ReadCache(tmp_path / "cache", 300), tmp_path / "copied"
    for number, name in enumerate("abc"):
        cache.keep(name, filled(tmp_path, name, 100))
        os.utime(cache.folder / name, (number, number))
    assert has(cache, "a", copied)
    cache.keep("d", filled(tmp_path, "d", 150))
    assert entries(cache) == ["a", "d"], "b and c were used before a"
    cache.keep("e", filled(tmp_path, "e", 301))
    assert entries(cache) == ["a", "d"], "what is larger than the cache displaces nothing"
    assert sum(path.stat().st_size for path in cache.folder.rglob("*") if path.is_file()) <= 300


def test_what_a_dead_process_left_is_swept_and_what_another_is_writing_is_not(tmp_path: Path):
    cache = ReadCache(tmp_path / "cache", 100)
    for name, age_s in (("dead", 1e6), ("alive", 0)):
        path = filled(cache.folder, f".oral-tmp-{name}", 90)
        os.utime(path, (path.stat().st_mtime - age_s,) * 2)
    cache.keep("a", filled(tmp_path, "a", 50))
    assert entries(cache) == [".oral-tmp-alive", "a"]


def test_a_full_disk_only_means_reading_through(
    far: Far, make_artifact: MakeArtifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    digest = AdapterStore(far).put(make_artifact())
    real = shutil.copyfile

    def full(source, target, **more):
        if "/cache/" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(source, target, **more)

    monkeypatch.setattr(shutil, "copyfile", full)
    for _ in range(2):
        far.reads = 0
        assert AdapterStore(far).get(digest).digest == digest
        assert far.reads == 3
    assert entries(far.cache) == []  # type: ignore[arg-type]


def test_a_cache_is_configured_for_s3_and_only_for_s3(tmp_path: Path, s3_objects: S3Objects):
    section = {"folder": str(tmp_path / "cache"), "max_bytes": 1000}
    here = build_config({"store": {"uri": str(tmp_path / "here"), "cache": section}}).store
    there = build_config({"store": {"uri": s3_objects.uri, "cache": section}}).store
    assert open_objects(here).cache is None
    cache = open_objects(there).cache
    assert cache is not None and (cache.folder, cache.max_bytes) == (tmp_path / "cache", 1000)
    assert open_objects(s3_objects.uri).cache is None
