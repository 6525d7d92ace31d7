"""A checkpoint is used when it is whole, quiet and well named; any other is reported with a reason, never half-used."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from oral_ray.bases.catalog import describe_base, discover
from oral_ray.bases.fingerprint import content_fingerprint
from oral_ray.bases.spec import read_config, read_spec, read_tensors
from oral_ray.objects import FileObjects, Objects, S3Objects


@pytest.fixture
def landed(objects: FileObjects, tiny_bert: Path) -> FileObjects:
    """A store with one complete checkpoint `v1`, an hour old."""
    shutil.copytree(tiny_bert, objects.root / "bases/v1")
    age(objects, "v1", 3600)
    return objects


def age(objects: FileObjects, base_id: str, seconds: float) -> None:
    then = time.time() - seconds
    for path in (objects.root / "bases" / base_id).iterdir():
        os.utime(path, (then, then))


def content(objects: Objects, prefix: str = "") -> str:
    return content_fingerprint(objects, read_config(objects, prefix), read_tensors(objects, prefix))


def found(objects: FileObjects | S3Objects, quiet_period_s: float = 0.0) -> tuple[list[str], dict[str, str]]:
    records, skipped = discover(objects, "bases", quiet_period_s)
    return [record.id for record in records], {item.id: item.reason for item in skipped}


def test_nothing_under_a_prefix_is_no_error(objects: FileObjects):
    assert found(objects) == ([], {})


def test_a_complete_checkpoint_is_described(landed: FileObjects):
    records, skipped = discover(landed, "bases", 0.0)
    assert skipped == []
    record = records[0]
    assert (record.id, record.uri) == ("v1", f"{landed.uri}/bases/v1")
    assert record.spec == read_spec(landed, "bases/v1/")
    assert record.fingerprint == content(FileObjects(landed.root / "bases/v1"))


def test_a_complete_checkpoint_on_s3_has_the_record_of_its_copy_in_a_folder(landed: FileObjects, s3_objects: S3Objects):
    for info in landed.list("bases/v1/"):
        s3_objects.put(info.key, landed.get(info.key))
    here, there = discover(landed, "bases", 0.0)[0][0], discover(s3_objects, "bases", 0.0)[0][0]
    assert here.model_copy(update={"uri": ""}) == there.model_copy(update={"uri": ""})


def drop_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def drop_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_weights(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-1])


def lose_a_shard(folder: Path) -> None:
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    weight_map = {name: f"model-{1 + (name == names[0])}.safetensors" for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (drop_config, "config.json is missing"),
        (drop_weights, "no safetensors weights"),
        (only_pickle, "pickle files are never read"),
        (cut_weights, "truncated or padded"),
        (lose_a_shard, "shard 'model-2.safetensors' of"),
    ],
)
def test_an_incomplete_checkpoint_is_skipped_with_a_reason_and_the_others_are_used(
    landed: FileObjects, damage: Callable[[Path], None], reason: str
):
    folder = landed.root / "bases/v2"
    shutil.copytree(landed.root / "bases/v1", folder)
    damage(folder)
    (folder / "READY").write_text("")  # waives the wait, not the check
    used, skipped = found(landed)
    assert used == ["v1"]
    assert list(skipped) == ["v2"]
    assert reason in skipped["v2"]


def test_a_checkpoint_that_changed_lately_waits_for_the_quiet_period(landed: FileObjects):
    assert found(landed, quiet_period_s=3000) == (["v1"], {})
    used, skipped = found(landed, quiet_period_s=4000)
    assert used == []
    assert "quiet period is 4000 s; wait" in skipped["v1"]
    os.utime(landed.root / "bases/v1/tokenizer.json")  # the youngest file counts
    assert "changed 0 s ago" in found(landed, quiet_period_s=3000)[1]["v1"]


def test_ready_waives_the_quiet_period_of_its_own_checkpoint_only(landed: FileObjects):
    shutil.copytree(landed.root / "bases/v1", landed.root / "bases/v2")
    age(landed, "v2", 10)
    (landed.root / "bases/v2/READY").write_text("")
    assert found(landed, quiet_period_s=3000) == (["v1", "v2"], {})
    (landed.root / "bases/v2/READY").unlink()
    (landed.root / "bases/v1/READY").write_text("")
    assert found(landed, quiet_period_s=3000)[0] == ["v1"]


@pytest.mark.parametrize("name", ["has space", "-dash", ".hidden", "a:b", "x" * 101, "new\nline"])
def test_a_checkpoint_with_a_name_that_cannot_be_an_id_is_skipped(landed: FileObjects, name: str):
    shutil.copytree(landed.root / "bases/v1", landed.root / "bases" / name)
    used, skipped = found(landed)
    assert used == ["v1"]
    assert "is no valid id" in skipped[name]


def test_a_copy_has_the_same_fingerprint_and_one_changed_value_another(landed: FileObjects):
    first = describe_base(landed, "bases/v1/", "v1").fingerprint
    folder = landed.root / "bases/v2"
    shutil.copytree(landed.root / "bases/v1", folder)
    assert content(landed, "bases/v2/") == first
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.1.attention.self.value.weight"][3, 5] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert content(landed, "bases/v2/") != first


def test_another_config_is_another_fingerprint_and_another_spelling_of_it_is_not(landed: FileObjects):
    first, path = content(landed, "bases/v1/"), landed.root / "bases/v1/config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(config.items()))))
    assert content(landed, "bases/v1/") == first
    path.write_text(json.dumps(config | {"layer_norm_eps": 1e-3}))
    assert content(landed, "bases/v1/") != first


def test_the_last_value_of_a_weight_file_longer_than_what_is_sampled_is_seen(objects: FileObjects):
    objects.put("config.json", b'{"model_type": "x"}')
    weight = torch.zeros(1_000_000)
    seen = set()
    for value in (0.0, 1.0):
        weight[-1] = value
        save_file({"a": weight}, objects.root / "model.safetensors")
        seen.add(content(objects))
    assert len(seen) == 2
