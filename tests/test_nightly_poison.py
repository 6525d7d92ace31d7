"""What is half, broken or hostile is reported by name and reason, nothing of it is published, and the rest is done."""

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from nightly_fixtures import ROOT, copied, items_of, land, published, tiny_config, weights_of
from safetensors.torch import save_file

from oral_ray.adapters.artifact import CONFIG, WEIGHTS, AdapterArtifact
from oral_ray.config import Config
from oral_ray.errors import StoreError
from oral_ray.nightly import gate, regenerate
from oral_ray.nightly.summary import summary_text
from oral_ray.objects import FileObjects
from oral_ray.pipeline.run import open_run
from oral_ray.store.adapters import AdapterStore

ONE_WEIGHT = "encoder.layer.0.attention.self.query.weight"


@pytest.fixture
def store(whole_path: tuple[Path, Path, str], tmp_path: Path) -> Iterator[Path]:
    yield copied(whole_path[0], tmp_path / "store")
    torch.use_deterministic_algorithms(False)


def half_uploaded(folder: Path) -> None:
    weights = weights_of(folder)
    weight_map = {name: f"model-{1 + (name == ONE_WEIGHT)}.safetensors" for name in weights}
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def header_bomb(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")


def nan_in_a_target(folder: Path) -> None:
    save_file(weights_of(folder) | {ONE_WEIGHT: torch.full((32, 32), torch.nan)}, folder / "model.safetensors")


def nan_elsewhere(folder: Path) -> None:
    name, weights = "embeddings.position_embeddings.weight", weights_of(folder)
    save_file(weights | {name: weights[name] * torch.inf}, folder / "model.safetensors")


def wrong_shape(folder: Path) -> None:
    save_file(weights_of(folder) | {ONE_WEIGHT: torch.zeros(32, 16)}, folder / "model.safetensors")


def wrong_vocabulary(folder: Path) -> None:
    weights = weights_of(folder)
    name = "embeddings.word_embeddings.weight"
    save_file(weights | {name: weights[name][:7].clone()}, folder / "model.safetensors", metadata={"format": "pt"})


def pickle_only(folder: Path) -> None:
    torch.save(weights_of(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def linked_file(folder: Path) -> None:
    outside = folder.parents[2] / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    (folder / "model.safetensors").symlink_to(outside)


def linked_folder(folder: Path) -> None:
    outside = folder.parents[2] / "outside"
    folder.rename(outside)
    folder.symlink_to(outside)


def traversing(folder: Path) -> None:
    weight_map = dict.fromkeys(weights_of(folder), "../tiny-t2/model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def latin1_file(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.txt")).write_text("x")


def surrogate_in_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"note": "\ud800"}))


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def garbage_sizes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": "many", "intermediate_size": 1e400}))


CHECKPOINTS: dict[Callable[[Path], None], str] = {
    half_uploaded: "shard 'model-2.safetensors' of",
    truncated: "truncated or padded",
    header_bomb: "header length 1152921504606846976 is not possible",
    nan_in_a_target: "query.weight holds values that are not finite",
    nan_elsewhere: "embeddings.position_embeddings.weight holds values that are not finite",
    wrong_shape: "is (32, 16), config.json says (32, 32)",
    wrong_vocabulary: "'embeddings.word_embeddings.weight' is (7, 32), config.json says (",
    pickle_only: "pickle files are never read",
    linked_file: "is a link that leaves the store",
    linked_folder: "and no link is followed here; copy it with cp -rL",
    latin1_file: "the file name 'caf\\udce9.txt' can be no key of a store",
    surrogate_in_config: "has '\\ud800' in config.json",
    empty: "is empty; put the files of a checkpoint directly below it",
    traversing: "shard '../tiny-t2/model.safetensors' of",
    garbage_sizes: "config.json gives hidden_size='many'; it has to be a whole number",
}


def test_every_poisoned_checkpoint_is_named_with_its_reason_and_the_sound_ones_are_released(
    store: Path, tiny_bert: Path
):
    land(store, "sound")
    for poison in CHECKPOINTS:
        poison(land(store, poison.__name__))
    summary = regenerate.run_night(
        open_run(tiny_config(store, tiny_bert, 'regenerate.bases=["*"]', "regenerate.retries=0"))
    )
    reasons = {item.id: item.reason for item in summary.skipped_bases} | {i.base: i.reason for i in summary.failed}
    assert reasons.keys() == {poison.__name__ for poison in CHECKPOINTS}
    assert len(summary.failed) == len({item.base for item in summary.failed}), "what does not load stands there once"
    for poison, reason in CHECKPOINTS.items():
        assert reason in reasons[poison.__name__]
        assert f"{poison.__name__} " in summary_text(summary)
    bases = {"sound", "tiny-t0", "tiny-t1", "tiny-t2"}
    assert {row["base"] for row in summary.published} == bases
    assert {name.partition("/")[0] for name in published(store)} == bases


def test_a_night_over_a_folder_in_latin1_ends_well_and_is_written_down(store: Path, tiny_bert: Path, tmp_path: Path):
    odd = Path(os.fsdecode(os.fsencode(store / "bases") + b"/caf\xe9"))
    shutil.copytree(store / "bases/tiny-t2", odd)
    (odd / "\n").write_text("x")
    files = [tmp_path / f"night.{kind}" for kind in ("json", "html", "txt")]
    command = [
        sys.executable, str(ROOT / "jobs/regenerate.py"), "--config", str(ROOT / "tests/tiny.toml"), "--store", str(store),
        *(f"--summary={file}" for file in files), f"bases.versions.0.origin.source={tiny_bert}", "cluster.address=none",
        'regenerate.bases=["none"]',  # the folder is looked at and nothing is done
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True)
    assert done.returncode == 0, done.stderr
    for text in (done.stdout.decode("ascii"), *(file.read_text("utf-8") for file in files)):
        assert "caf\\udce9" in text.replace("\\\\", "\\")


def without_marker(folder: Path, good: AdapterArtifact) -> None:
    (folder / CONFIG).unlink()


def cut(folder: Path, good: AdapterArtifact) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).write_bytes(data[:-50])


def bomb(folder: Path, good: AdapterArtifact) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 2**60) + b"{}")


def pickled(folder: Path, good: AdapterArtifact) -> None:
    (folder / WEIGHTS).unlink()
    torch.save(good.tensors, folder / "adapter_model.bin")


def others_weights(folder: Path, good: AdapterArtifact) -> None:
    (folder / WEIGHTS).unlink()
    save_file({name: t + 1 for name, t in good.tensors.items()}, folder / WEIGHTS)


ADAPTERS: dict[Callable[[Path, AdapterArtifact], None], str] = {
    without_marker: "no adapter",
    cut: "is damaged",
    bomb: "is damaged",
    pickled: "no adapter",
    others_weights: "it was changed or damaged",
}


def test_every_poisoned_adapter_is_refused_by_name_and_the_sound_candidates_compete(store: Path, tiny_bert: Path):
    config, item = an_item(store, tiny_bert)
    adapters, good = AdapterStore(FileObjects(store)), AdapterStore(FileObjects(store)).get(item.reuse["reuse_new"])
    poisoned: dict[str, str] = {}
    for number, poison in enumerate(ADAPTERS):
        tensors = {name: t + number + 1 for name, t in good.tensors.items()}
        digest = adapters.put(AdapterArtifact(good.config, tensors, good.provenance))
        poison(store / "adapters" / digest, good)
        poisoned[poison.__name__] = digest
    nan = {name: t * torch.nan for name, t in good.tensors.items()}
    poisoned["not_finite"] = adapters.put(AdapterArtifact(good.config, nan, good.provenance))
    other = {name: torch.zeros(2, 7) for name in good.tensors}
    poisoned["of_another_shape"] = adapters.put(AdapterArtifact(good.config, other, good.provenance))
    outcome, adapter = gate.regenerate_item(config, item.model_copy(update={"reuse": item.reuse | poisoned}))
    wanted = ADAPTERS | {"not_finite": "not finite", "of_another_shape": "is (2, 7), the layout"}
    assert outcome.refused.keys() == poisoned.keys()
    for poison, reason in wanted.items():
        name = poison if isinstance(poison, str) else poison.__name__
        assert reason in outcome.refused[name], name
    assert adapter is not None and adapter.arm in ("generated", "reuse_new", "reuse_old")
    assert not {digest[:12] for digest in poisoned.values()} & {name[-12:] for name in published(store)}


@pytest.mark.parametrize("how", ["a link", "a path"])
def test_an_adapter_that_leads_out_of_the_store_fails_its_item_and_is_not_read(store: Path, tiny_bert: Path, how: str):
    config, item = an_item(store, tiny_bert)
    good = item.reuse["reuse_new"]
    if how == "a link":
        (store / "adapters" / good).rename(store.parent / "outside")
        (store / "adapters" / good).symlink_to(store.parent / "outside")
        reuse, reason = {"reuse_new": good}, "is a link that leaves the store"
    else:
        shutil.copytree(store / "adapters" / good, store.parent / "outside")
        reuse, reason = {"reuse_new": "../../outside"}, "is not a plain relative name"
    with pytest.raises(StoreError, match=reason):
        gate.regenerate_item(config, item.model_copy(update={"reuse": reuse}))
    assert not (store / "published").exists()


def an_item(store: Path, tiny_bert: Path) -> tuple[Config, gate.Item]:
    """The configuration, and the first item that is due in a store."""
    config = tiny_config(store, tiny_bert)
    recipe = regenerate.dry_run(open_run(config)).generator
    return config, items_of(config, recipe)[0]
