"""Bases in the store are what the configuration says, or an error says that they are not."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from oral_ray.bases.catalog import BaseRecord, describe_base
from oral_ray.config import Config, build_config
from oral_ray.errors import BaseModelError
from oral_ray.objects import FileObjects
from oral_ray.pipeline.bases import resolve_bases
from oral_ray.pipeline.run import open_run


def config(objects: FileObjects, steps: int) -> Config:
    origin = {"kind": "evolve", "parent": "t0", "steps": steps}
    versions = [{"id": "t0", "origin": {"kind": "landed"}}, {"id": "t1", "origin": origin}]
    return build_config({"store": {"uri": str(objects.root)}, "bases": {"versions": versions}})


def resolved(settings: Config) -> Mapping[str, BaseRecord]:
    return resolve_bases(open_run(settings)).bases


@pytest.fixture
def made(objects: FileObjects, tiny_bert: Path) -> FileObjects:
    """A store with a landed base and one that was made from it by 5 steps, as far as its records say."""
    for name in ("t0", "t1"):
        shutil.copytree(tiny_bert, objects.root / "bases" / name)
    resolved(config(objects, steps=5))
    return objects


def test_what_is_made_is_found_again(made: FileObjects):
    keys = [info.key for info in made.list()]
    assert list(resolved(config(made, steps=5))) == ["t0", "t1"]
    assert [info.key for info in made.list()] == keys


def test_a_version_of_another_recipe_is_not_taken_for_the_configured_one(made: FileObjects):
    keys = [info.key for info in made.list()]
    with pytest.raises(
        BaseModelError, match=r"base 't1' in .* was made by another recipe .*; give the new one another id"
    ):
        resolved(config(made, steps=6))
    assert [info.key for info in made.list()] == keys


def test_a_version_that_was_replaced_is_named(made: FileObjects):
    path = made.root / "bases/t1/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(BaseModelError, match=r"base 't1' in .* was replaced, give the new one another id"):
        resolved(config(made, steps=5))


def test_lineages_are_made_side_by_side(objects: FileObjects, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch):
    origins = {"t0": "", "news-t1": "t0", "news-t2": "news-t1", "code-t1": "t0", "code-t2": "code-t1"}
    versions = [
        {"id": name, "origin": {"kind": "pretrain", "parent": parent, "corpus": name[:4], "threads": 1}}
        if parent
        else {"id": name, "origin": {"kind": "import", "source": str(tiny_llama)}}
        for name, parent in origins.items()
    ]
    together = []

    def copy_all(calls, cluster, **_):
        together.append([version.id for _, (_, _, version, _) in calls])
        assert cluster.threads_per_task == 1
        for _, (_, prefix, version, parent) in calls:
            assert (parent.id if parent else "") == origins[version.id]
            shutil.copytree(tiny_llama, objects.root / prefix)

    monkeypatch.setattr("oral_ray.pipeline.run.run_tasks", copy_all)
    settings = build_config({"store": {"uri": str(objects.root)}, "bases": {"versions": versions}})
    assert list(resolved(settings)) == list(origins)
    assert together == [["t0"], ["news-t1", "code-t1"], ["news-t2", "code-t2"]]
    resolved(settings)
    assert len(together) == 3


def test_a_parent_that_comes_later_is_an_error(objects: FileObjects):
    versions = [
        {"id": "t1", "origin": {"kind": "evolve", "parent": "t0", "steps": 1}}, {"id": "t0", "origin": {"kind": "landed"}},
    ]  # fmt: skip
    settings = build_config({"store": {"uri": str(objects.root)}, "bases": {"versions": versions}})
    with pytest.raises(
        BaseModelError, match=r"'t1' evolves from 't0', which is not configured before it; there are none"
    ):
        resolved(settings)


def test_a_version_is_imported_from_a_hub_cache_without_the_network(
    objects: FileObjects, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cache = tmp_path / "hub/models--tiny--bert"
    for number, path in enumerate(sorted(tiny_bert.iterdir())):
        (cache / "blobs").mkdir(parents=True, exist_ok=True)
        (cache / "snapshots/abc").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, cache / f"blobs/{number}")
        (cache / "snapshots/abc" / path.name).symlink_to(f"../../blobs/{number}")
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    version = {"id": "t0", "origin": {"kind": "import", "source": "hf:tiny/bert"}}
    settings = {"bases": {"versions": [version]}, "cluster": {"address": "none"}}
    found = resolved(build_config({"store": {"uri": str(objects.root)}, **settings}))
    assert found["t0"].fingerprint == describe_base(FileObjects(tiny_bert), "", "t0").fingerprint
    assert not any(path.is_symlink() for path in (objects.root / "bases/t0").iterdir())
