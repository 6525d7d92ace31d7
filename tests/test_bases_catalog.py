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

from oral_ray.bases import catalog
from oral_ray.bases.catalog import describe_base, discover
from oral_ray.bases.checkpoint import read_checkpoint
from oral_ray.bases.fingerprint import content_fingerprint
from oral_ray.bases.spec import read_spec
from oral_ray.bench import plan
from oral_ray.bench.plan import CountedObjects
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
    return content_fingerprint(objects, prefix, read_checkpoint(objects, prefix))


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


def test_a_night_costs_calls_for_what_changed_and_not_for_what_lies_there(objects: FileObjects):
    for number in range(12):  # six families, two bases each
        plan.land(objects, number)
    first, unchanged, changed, again = (CountedObjects(objects) for _ in range(4))
    everything = discover(first, "bases", 0.0)  # type: ignore[arg-type]
    assert [len(part) for part in everything] == [12, 0]
    assert {record.spec.model_type for record in everything[0]} == {
        "llama",
        "mistral",
        "qwen2",
        "gemma",
        "bert",
        "gpt2",
    }
    assert discover(unchanged, "bases", 0.0) == everything  # type: ignore[arg-type]
    assert unchanged.calls == {"get": 1, "list": 1}
    plan.land(objects, 5, version=1)
    records = discover(changed, "bases", 0.0)[0]  # type: ignore[arg-type]
    differing = [new.id for new, old in zip(records, everything[0], strict=True) if new != old]
    assert differing == [plan.base_id(5)], "the same path, another version"
    assert changed.calls == {"list": 1, "get": 2, "range": 4, "put": 1}
    assert changed.calls["range"] < first.calls["range"]
    objects.delete("cache/bases/bases.json")
    assert discover(again, "bases", 0.0)[0] == records, "the cache is no truth"  # type: ignore[arg-type]


def test_what_an_event_did_not_name_is_still_known_and_what_is_gone_is_forgotten(landed: FileObjects):
    shutil.copytree(landed.root / "bases/v1", landed.root / "bases/v2")
    assert [record.id for record in discover(landed, "bases", 0.0)[0]] == ["v1", "v2"]

    def known() -> set[str]:
        return set(json.loads(landed.get("cache/bases/bases.json"))["entries"])

    shutil.rmtree(landed.root / "bases/v2")
    assert [record.id for record in discover(landed, "bases", 0.0, only=["v1"])[0]] == ["v1"]
    assert known() == {"v1", "v2"}
    assert discover(landed, "bases", 0.0, only=["v2"]) == ([], [])
    assert known() == {"v1"}
    shutil.rmtree(landed.root / "bases/v1")
    assert discover(landed, "bases", 0.0) == ([], [])
    assert known() == set()


def test_a_link_out_of_the_store_is_refused_by_name(landed: FileObjects, tmp_path: Path):
    (tmp_path / "elsewhere.txt").write_text("secret")
    (landed.root / "bases/v1/vocab.txt").symlink_to(tmp_path / "elsewhere.txt")
    ids, skipped = found(landed)
    assert ids == []
    assert "link that leaves the store" in skipped["v1"]


def test_a_refusal_is_remembered_until_the_checkpoint_changes_and_a_wait_is_not(landed: FileObjects):
    shutil.copytree(landed.root / "bases/v1", landed.root / "bases/v2")
    drop_weights(landed.root / "bases/v2")
    first = found(landed)
    counted = CountedObjects(landed)
    assert [item.id for item in discover(counted, "bases", 0.0)[1]] == ["v2"]  # type: ignore[arg-type]
    assert counted.calls == {"get": 1, "list": 1}
    shutil.copy(landed.root / "bases/v1/model.safetensors", landed.root / "bases/v2")
    assert "wait" in found(landed, quiet_period_s=3000)[1]["v2"]
    assert first[0] == ["v1"] and found(landed)[0] == ["v1", "v2"]


def test_other_rules_or_a_damaged_cache_mean_that_all_is_read_anew(
    landed: FileObjects, monkeypatch: pytest.MonkeyPatch
):
    wanted = discover(landed, "bases", 0.0)
    landed.put("cache/bases/bases.json", b'{"rules": 1')
    assert discover(landed, "bases", 0.0) == wanted
    monkeypatch.setattr(catalog, "RULES_VERSION", 99)
    counted = CountedObjects(landed)
    assert discover(counted, "bases", 0.0) == wanted  # type: ignore[arg-type]
    assert counted.calls["range"] > 0


def test_a_ready_that_is_older_than_the_rest_waives_nothing(landed: FileObjects):
    (landed.root / "bases/v1/READY").write_text("")
    age(landed, "v1", 60)
    assert found(landed, quiet_period_s=3000)[0] == ["v1"]
    os.utime(landed.root / "bases/v1/model.safetensors")  # the next upload has begun
    assert "wait" in found(landed, quiet_period_s=3000)[1]["v1"]


def test_a_checkpoint_in_shards_is_one_version_and_its_shards_are_not_read_whole(objects: FileObjects, tiny_bert: Path):
    folder = objects.root / "bases/v1"
    shutil.copytree(tiny_bert, folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, big = sorted(weights), torch.zeros(4_000_000)
    halves = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for shard, chosen in halves.items():
        save_file({name: weights[name] for name in chosen} | {f"unused.{shard}": big}, folder / shard)
    weight_map = {name: shard for shard, chosen in halves.items() for name in (*chosen, f"unused.{shard}")}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    read = 0

    class Measured(CountedObjects):
        def range(self, key: str, start: int, length: int) -> bytes:
            nonlocal read
            data = objects.range(key, start, length)
            read += len(data)
            return data

    records, skipped = discover(Measured(objects), "bases", 0.0)  # type: ignore[arg-type]
    assert ([record.id for record in records], skipped) == (["v1"], [])
    assert read < 2 * 17 * 65536 < sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 10
