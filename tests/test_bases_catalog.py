"""A checkpoint is used when it is whole, quiet and well named; any other is reported with a reason, never half-used."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from dev.bench import plan
from dev.bench.plan import CountedObjects
from safetensors.torch import load_file, save_file

from oral_ray.bases import catalog
from oral_ray.bases.catalog import describe_base, discover
from oral_ray.bases.checkpoint import read_checkpoint
from oral_ray.bases.fingerprint import content_fingerprint
from oral_ray.bases.headers import Files
from oral_ray.bases.spec import read_spec
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


def cut_weights(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-1])


def lose_a_shard(folder: Path) -> None:
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    weight_map = {name: f"model-{1 + (name == names[0])}.safetensors" for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def only_shards(folder: Path) -> None:
    for number in (1, 2):
        shutil.copy(folder / "model.safetensors", folder / f"model-0000{number}-of-00003.safetensors")
    (folder / "model.safetensors").unlink()


def renamed(old: str, new: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / new).parent.mkdir(parents=True, exist_ok=True)
        (folder / old).rename(folder / new)

    return damage


def only(*names: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        shutil.rmtree(folder)
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("x")

    return damage


def written(name: str, data: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return damage


def nested(folder: Path) -> None:
    shutil.copytree(folder, folder.parent.parent / "aside")
    shutil.rmtree(folder)
    shutil.copytree(folder.parent.parent / "aside", folder / "snapshots/abc")


def hub_cache(folder: Path) -> None:
    nested(folder)
    (folder / "blobs").mkdir()
    (folder / "snapshots/abc/config.json").rename(folder / "blobs/1")
    (folder / "snapshots/abc/config.json").symlink_to("../../blobs/1")


def with_config(**values: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return damage


def deep_config(folder: Path) -> None:
    text = (folder / "config.json").read_text().rstrip().removesuffix("}")
    (folder / "config.json").write_text(text + ', "a": ' + "[" * 600 + "]" * 600 + "}")


def surrogate_in_a_header(folder: Path) -> None:
    save_file(load_file(folder / "model.safetensors") | {"note_1234": torch.zeros(1)}, folder / "model.safetensors")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b"note_1234", b"not\\ud800"))


def latin1_file(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.txt")).write_text("x")


def linked_in_a_circle(folder: Path) -> None:
    (folder / "vocab.txt").symlink_to("vocab.txt")


def linked_to_nothing(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("blobs/gone")


def linked_to_a_neighbour(folder: Path) -> None:
    (folder / "vocab.txt").symlink_to("../v1/tokenizer.json")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (
        renamed("config.json", "x.txt"),
        "has weights (model.safetensors) and no config.json; add the model's",
    ),
    "no weights": (renamed("model.safetensors", "x.txt"), "has config.json and no safetensors weights; add"),
    "pickle": (renamed("model.safetensors", "pytorch_model.bin"), "has pickle weights only (pytorch_model.bin), and"),
    "cut": (cut_weights, "truncated or padded"),
    "a shard lost": (lose_a_shard, "shard 'model-2.safetensors' of"),
    "no index": (only_shards, "has 2 of 3 shards and no model.safetensors.index.json; add the index and the other"),
    "variant": (renamed("model.safetensors", "model.fp16.safetensors"), "under another name (model.fp16.safetensors)"),
    "upper case": (renamed("model.safetensors", "MODEL.SAFETENSORS"), "read as model.safetensors only; rename it"),
    "upper case config": (renamed("config.json", "Config.json"), "has 'Config.json' and no config.json; rename it"),
    "partial": (
        renamed("model.safetensors", "model.safetensors.incomplete"),
        "not fully downloaded (model.safetensors.in",
    ),
    "partial of the hub": (
        renamed("model.safetensors", ".cache/huggingface/download/x.incomplete"),
        "not fully downloaded (.cache/hugging",
    ),
    "diffusers": (
        renamed("model.safetensors", "diffusion_pytorch_model.safetensors"),
        "is a part of a diffusers pipeline (diffusion_pytorch_model.safetensors); give the whole pipeline",
    ),
    "pipeline": (
        only("model_index.json", "unet/config.json"),
        "model_index.json is not valid JSON",
    ),
    "weights below": (
        renamed("model.safetensors", "weights/model.safetensors"),
        "has its weights in weights/; put them",
    ),
    "other format": (renamed("model.safetensors", "tf_model.h5"), "has weights only as tf_model.h5; load it"),
    "gguf": (only("m-q4.gguf"), 'origin = { kind = "import", source = ".../m-q4.gguf" }'),
    "gguf and config": (renamed("model.safetensors", "m.gguf"), "has a GGUF file only (m.gguf)"),
    "adapter": (
        only("adapter_config.json", "adapter_model.safetensors"),
        "is an adapter, no base (adapter_config.json",
    ),
    "adapter and config": (
        renamed("model.safetensors", "adapter_model.safetensors"),
        "is an adapter (adapter_model.saf",
    ),
    "read me": (only("README.md"), "has no config.json and no weights (it holds README.md); put"),
    "nested": (nested, "has its files in snapshots/abc/; put them directly below"),
    "two nested": (only("a/config.json", "b/config.json"), "has 2 checkpoints below it (a/, b/); give each a folder"),
    "hub cache": (hub_cache, "is a folder of the hub's cache, the files are links in snapshots/abc/; copy that"),
    "lfs weights": (written("model.safetensors", POINTER), "model.safetensors' is a Git LFS pointer, not the file"),
    "lfs config": (written("config.json", POINTER), "config.json' is a Git LFS pointer, not the file"),
    "lfs tokenizer": (written("tokenizer.json", POINTER), "'tokenizer.json' is a Git LFS pointer, not the file"),
    "surrogate": (with_config(note="\ud800"), "has '\\ud800' in config.json or in the name of a tensor"),
    "surrogate type": (with_config(model_type="x\ud800"), "has '\\ud800' in config.json or in the name of a tensor"),
    "surrogate tensor": (surrogate_in_a_header, "has '\\ud800' in config.json or in the name of a tensor"),
    "latin-1": (latin1_file, "the file name 'caf\\udce9.txt' can be no key of a store; rename or delete"),
    "control": (written("a\tb.txt", b"x"), "the file name 'a\\tb.txt' can be no key of a store; rename or delete"),
    "circle": (linked_in_a_circle, "'vocab.txt' is a link to 'vocab.txt', which is not there"),
    "dangling": (linked_to_nothing, "'config.json' is a link to 'blobs/gone', which is not there"),
    "neighbour": (linked_to_a_neighbour, "'vocab.txt' is a link that leaves the store or the checkpoint's own folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_checkpoint_is_skipped_with_its_true_reason_and_the_others_are_used(landed: FileObjects, case: str):
    damage, reason = REFUSED[case]
    folder = landed.root / "bases/v2"
    shutil.copytree(landed.root / "bases/v1", folder)
    damage(folder)
    for _ in range(2):  # the second time what was said is read from the cache
        used, skipped = found(landed)
        assert used == ["v1"]
        assert list(skipped) == ["v2"]
        assert reason in skipped["v2"]
        json.dumps(skipped, ensure_ascii=False).encode()


def test_config_nested_deeply_is_no_traceback(landed: FileObjects):
    shutil.copytree(landed.root / "bases/v1", landed.root / "bases/v2")
    deep_config(landed.root / "bases/v2")
    used, skipped = found(landed)
    assert "v1" in used
    assert "looking at it failed" not in skipped.get("v2", ""), "that is said of faults of the program"


def test_ready_waives_the_wait_and_not_the_check(landed: FileObjects):
    shutil.copytree(landed.root / "bases/v1", landed.root / "bases/v2")
    cut_weights(landed.root / "bases/v2")
    (landed.root / "bases/v2/READY").write_text("")
    assert "truncated or padded" in found(landed, 3000)[1]["v2"]


def test_an_empty_folder_a_file_and_a_link_are_named(landed: FileObjects):
    (landed.root / "bases/empty").mkdir()
    (landed.root / "bases/file.gguf").write_text("x")
    (landed.root / "bases/linked").symlink_to("v1")
    used, skipped = found(landed)
    assert used == ["v1"]
    assert "is empty; put the files of a checkpoint directly below it" in skipped["empty"]
    assert "is a file, no folder; put a checkpoint's files below bases/ID/" in skipped["file.gguf"]
    assert "is a link to 'v1', and no link is followed here; copy it with cp -rL" in skipped["linked"]


def test_a_link_within_the_checkpoint_is_followed(landed: FileObjects):
    (landed.root / "bases/v1/model.safetensors").rename(landed.root / "bases/v1/blob")
    (landed.root / "bases/v1/model.safetensors").symlink_to("blob")
    assert found(landed) == (["v1"], {})


def test_a_folder_that_cannot_be_read_is_named_and_hides_no_other(landed: FileObjects, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(landed.root / "bases/v1", landed.root / "bases/v2")
    walk = os.walk

    def refusing(top: Path, onerror: Callable[[OSError], None] | None = None):
        if str(top).endswith("/v2") and onerror:  # who runs the tests may read everything
            onerror(PermissionError(13, "Permission denied", str(top)))
        return walk(top, onerror=onerror)

    monkeypatch.setattr("oral_ray.objects.file.os.walk", refusing)
    used, skipped = found(landed)
    assert used == ["v1"]
    assert "Permission denied; make it readable" in skipped["v2"]


@pytest.mark.parametrize("error", [RuntimeError("odd"), MemoryError(), KeyError("\ud800"), OSError(5, "Input/output")])
def test_whatever_is_raised_while_one_is_looked_at_is_said_of_that_one(
    landed: FileObjects, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    shutil.copytree(landed.root / "bases/v1", landed.root / "bases/v2")
    describe = catalog.describe_base

    def failing(files: Files, prefix: str, base_id: str):
        if base_id == "v2":
            raise error
        return describe(files, prefix, base_id)

    monkeypatch.setattr(catalog, "describe_base", failing)
    used, skipped = found(landed)
    assert used == ["v1"]
    assert f"looking at it failed: {type(error).__name__}" in skipped["v2"]
    skipped["v2"].encode()


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


ODD_NAMES = [
    b"has space", b"-dash", b".hidden", b"..hidden", b"a:b", b"a%2e%2e", b"x" * 101, b"x" * 200, b"new\nline", b"tab\t",
    b"base@v1", b"caf\xe9", "café".encode(), "😀".encode(), b"quote'\"", b"back\\slash", b"\x1b[31m",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_checkpoint_with_a_name_that_cannot_be_an_id_is_skipped(landed: FileObjects, name: bytes):
    (landed.root / "bases" / os.fsdecode(name)).mkdir()
    shutil.copy(landed.root / "bases/v1/config.json", landed.root / "bases" / os.fsdecode(name))
    used, skipped = found(landed)
    assert used == ["v1"]
    [(shown, reason)] = skipped.items()
    assert "is no valid id; rename it" in reason
    assert shown.isprintable() and reason.isprintable()
    assert shown == os.fsdecode(name) or not os.fsdecode(name).isprintable()
    json.dumps(skipped, ensure_ascii=False).encode()


def test_names_that_differ_in_case_only_are_two_bases(landed: FileObjects):
    shutil.copytree(landed.root / "bases/v1", landed.root / "bases/V1")
    assert found(landed)[0] == ["V1", "v1"]


def test_a_change_in_the_future_is_told_from_one_that_was_just_made(landed: FileObjects):
    path = landed.root / "bases/v1/model.safetensors"
    later = time.time() + 2 * 86400
    os.utime(path, (later, later))
    reason = found(landed, quiet_period_s=60)[1]["v1"]
    assert reason.startswith("'model.safetensors' was changed 172")
    assert "s in the future; set the clock right (here, or where it was written) and touch the file" in reason
    soon = time.time() + 5
    os.utime(path, (soon, soon))
    assert "changed 0 s ago, quiet period is 60 s; wait" in found(landed, quiet_period_s=60)[1]["v1"]
    assert found(landed, quiet_period_s=0)[0] == ["v1"], "who does not wait does not look at the clock"


def test_a_cache_that_cannot_be_used_is_made_anew(landed: FileObjects):
    wanted = discover(landed, "bases", 0.0)
    cache = json.loads(landed.get("cache/bases/bases.json"))
    landed.put("cache/bases/bases.json", json.dumps(cache | {"architectures": {}}).encode())
    assert discover(landed, "bases", 0.0) == wanted
    landed.put("cache/bases/bases.json", b"[" * 100_000)
    assert discover(landed, "bases", 0.0) == wanted


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
    (landed.root / "bases/v2/model.safetensors").unlink()
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


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_pipe_among_the_files_of_a_base_never_blocks_the_night(landed: FileObjects, name: str):
    (landed.root / "bases/v1" / name).unlink(missing_ok=True)
    os.mkfifo(landed.root / "bases/v1" / name)
    used, skipped = found(landed)
    assert "v1" not in used
    assert "pipe" in skipped["v1"] or "tokenizer" in skipped["v1"]
